"""Texts, or pairs of texts, with one label each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...data.metrics import classification_metrics
from .texts import HeadKind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data import Task
    from ..data import Data, Encoded
    from ..images import Images


UNEVEN = 1.2
"""How many times its even share of the training examples the most frequent class has at least, for a score of its own:
below, that says no more than uniform guessing."""


class Classification(HeadKind):
    """Integer labels; cross-entropy."""

    name = "classification"
    metrics = ("accuracy", "nll")
    fields: ClassVar[tuple[str, ...]] = ("max_length", "teacher")

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return classification_metrics(predictions, labels, also=task.also)

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        return [len(data.labels)] * len(data.splits[split]) if data.labels else ()

    def most_frequent(self, data: Data, split: str) -> dict[str, float]:
        import numpy as np

        train, scored = (cast("Encoded | Images", data.fixed(name)).targets() for name in ("train", split))
        (label, count), *_ = Counter(train).most_common(1)
        if count * len(data.labels) < UNEVEN * len(train):
            return {}
        always = np.zeros((len(scored), len(data.labels)))
        always[:, label] = 1
        found = self.compute_metrics(data.task, always, np.asarray(scored))
        return {name: value for name, value in found.items() if name != "nll"}  # it has no probabilities

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        probability, index = logits.softmax(-1).max(-1)
        return {"label": config.id2label[int(index)], "probability": probability.item()}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["label"], f"{100 * answer['probability']:.1f}%", answer["text"]


CLASSIFICATION = Classification()
