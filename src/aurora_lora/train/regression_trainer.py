"""`RecipeTrainer` for numbers of any size: they are standardised while they are learned; see `label_scale`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .label_scale import LabelScale, compute_in_float32, output_layer
from .recipe import Recipe
from .trainer import RecipeTrainer


class RegressionTrainer(RecipeTrainer):
    """The trainer of `aurora train` for the user's own numbers.

    Args:
        recipe, checkpoints, kwargs: as in `RecipeTrainer`.
        scale: what the model learns the labels in; None where it gives label units, as a finished run does.
    """

    def __init__(self, recipe: Recipe, checkpoints: Path, *, scale: LabelScale | None, **kwargs: Any) -> None:
        super().__init__(recipe, checkpoints, **kwargs)
        self.scale = scale
        self.layer = output_layer(self.module)
        if self.layer is not None:
            compute_in_float32(self.layer)
        if scale is not None:
            self.compute_loss_func = scale.loss
            self.preprocess_logits_for_metrics = scale.in_label_units

    def load_best(self) -> None:
        """Put the weights of the best checkpoint into the model; from here on it gives label units."""
        super().load_best()
        if self.scale is not None:
            assert self.layer is not None  # else there is no scale
            self.scale.fold(self.layer)
            self.scale, self.preprocess_logits_for_metrics = None, None
            self.compute_loss_func = self.recipe.task.kind.loss()
