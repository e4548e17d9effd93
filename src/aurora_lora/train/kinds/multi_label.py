"""Texts, or pairs of texts, with any number of labels each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...data.metrics import multi_label_metrics
from .base import Loss
from .texts import HeadKind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data import Task


class MultiLabel(HeadKind):
    """Lists of integers as labels; binary cross-entropy of each label."""

    name = "multi-label"
    metrics = ("micro_f1", "macro_f1", "nll")
    problem_type = "multi_label_classification"
    label_dtype = "float32"

    def made(self, config: Any) -> bool:
        return super().made(config) and config.problem_type == self.problem_type

    def target(self, label: Any, count: int) -> Any:
        return [float(place in label) for place in range(count)]

    def loss(self) -> Loss:
        from ..losses import binary_loss

        return binary_loss

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return multi_label_metrics(predictions, labels)

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        found = [(config.id2label[place], one) for place, one in enumerate(logits.sigmoid().tolist())]
        labels = sorted((one for one in found if one[1] > 0.5), key=lambda one: -one[1])
        return {"labels": [label for label, _ in labels], "probabilities": dict(found)}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return ", ".join(answer["labels"]) or "none", "", answer["text"]


MULTI_LABEL = MultiLabel()
