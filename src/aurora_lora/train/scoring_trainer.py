"""`RecipeTrainer` for tasks whose evaluations compute scores, not a loss: questions with choices, conversations, and
hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .trainer import RecipeTrainer


class ScoringTrainer(RecipeTrainer):
    """A `RecipeTrainer` whose evaluations compute scores of each example, and no loss."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No loss, and what `scored` gives of the batch."""
        batch = self._prepare_inputs(dict(inputs))
        with torch.no_grad(), self.accelerator.autocast():
            return None, *self.scored(model, batch)

    def scored(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch, ...) scores, and the labels that the metrics compare them with."""
        raise NotImplementedError
