"""Texts with a teacher's hidden states in place of labels: what a task becomes when a recipe gives it a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...data.metrics import captured_metrics
from .base import Loss
from .texts import TextKind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data import Task
    from ..data import Data
    from ..recipe import Recipe
    from ..trainer import RecipeTrainer


class Distillation(TextKind):
    """The model's body alone; squared error of its last hidden states. See `training.distillation`."""

    name = "distillation"
    task_type = "FEATURE_EXTRACTION"
    auto = "AutoModel"
    pipeline = "feature-extraction"
    metrics = ("captured",)
    fields = ()  # a recipe names the task that it is made of
    scores_batches = False  # of the hidden states themselves, merge_gap has the difference
    no_answer = "has learned hidden states: it has nothing to say about a text"

    def of(self, task: Task) -> Task:
        """A task's texts, with a teacher's hidden states to learn."""
        return replace(task, kind=self.name, labels=(), metric="captured", also=())

    def with_targets(self, data: Data, recipe: Recipe) -> Data:
        from ..distillation import taught

        return taught(data, recipe)

    def gap_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from ..data import without_targets

        return without_targets(batch)

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return captured_metrics(predictions)

    def loss(self) -> Loss:
        from ..distillation import states_loss

        return states_loss

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        from ..distillation import DistillationTrainer

        return DistillationTrainer


DISTILLATION = Distillation()
