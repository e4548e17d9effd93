"""What a task is: data, in one frozen dataclass. Adding a task touches no other code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aurora_lora.errors import UserError
from aurora_lora.tasks.metrics import classification_metrics, regression_metrics

if TYPE_CHECKING:
    import datasets
    import numpy as np


@dataclass(frozen=True)
class SplitSizes:
    """How many examples each split holds.

    Args:
        train: number of training examples; `None` takes all that validation and test leave.
        validation: number of validation examples.
        test: number of test examples.

    Raises:
        UserError: a size below 1.
    """

    train: int | None
    validation: int
    test: int

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(f"the {name} size must be at least 1, got {size}")


@dataclass(frozen=True)
class Task:
    """A data set with its splits and its metric.

    Args:
        name: the name on the command line and in `TASKS`.
        description: one line for `aurora list tasks`.
        kind: `"classification"` (integer labels) or `"regression"` (float labels).
        labels: the class names in label order; empty for regression.
        metric: the key of `compute_metrics` that is reported and selected by; higher is better.
        text_columns: the columns that go to the tokenizer, one sentence or a pair.
        source: where the data comes from.
        license: the licence of the data.
        load: `load(sizes, split_seed)` gives a `datasets.DatasetDict` with `train`, `validation` and `test`.
    """

    name: str
    description: str
    kind: Literal["classification", "regression"]
    labels: tuple[str, ...]
    metric: str
    text_columns: tuple[str, ...]
    source: str
    license: str
    load: Callable[[SplitSizes, int], datasets.DatasetDict]

    def compute_metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of this task's kind.

        Args:
            predictions: logits (examples, classes), or predicted values (examples,) or (examples, 1) for regression.
            labels: (examples,).
        """
        compute = classification_metrics if self.kind == "classification" else regression_metrics
        return compute(predictions, labels)
