"""Texts, or pairs of texts, with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...tasks.metrics import classification_metrics
from .base import HeadKind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...tasks import Task
    from ..data import Data


class Classification(HeadKind):
    """Integer labels; cross-entropy."""

    name = "classification"
    metrics = ("accuracy", "nll")
    fields: ClassVar[tuple[str, ...]] = ("max_length", "teacher")

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return classification_metrics(predictions, labels, also=task.also)

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        return [len(data.labels)] * len(data.splits[split]) if data.labels else ()

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        probability, index = logits.softmax(-1).max(-1)
        return {"label": config.id2label[int(index)], "probability": probability.item()}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["label"], f"{100 * answer['probability']:.1f}%", answer["text"]


CLASSIFICATION = Classification()
