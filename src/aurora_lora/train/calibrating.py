"""A run's own calibration: from its training data, each process with its share of them."""

from __future__ import annotations

import torch

from ..deploy import calibrate
from ..forms import CALIBRATED
from .callback import is_calibrated
from .data import Data
from .distributed import own_part, state
from .recipe import Recipe
from .trainer import RecipeTrainer


def calibrate_for(recipe: Recipe, trainer: RecipeTrainer, data: Data) -> None:
    """Calibrate the model as the recipe says, if its method has a calibrated form and its weights came without.

    Where the calibrated form is deployed, a checkpoint has the matrices of the evaluation that it was written at, from
    these same inputs.
    """
    if CALIBRATED in recipe.method.forms and not is_calibrated(trainer.module):
        with trainer.accelerator.autocast():  # the model has it of its own only where something was trained
            calibrate(trainer.module, own_share(data, recipe), ridge=recipe.calibration.ridge)


def own_share(data: Data, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """This process's calibration batches: the moments are summed over the processes, none of an example twice."""
    section, peers = recipe.calibration, state().num_processes
    count = min(section.examples, len(data.fixed("train")))
    size = max(1, min(section.batch_size, count // peers))  # a batch for each, where there are examples
    batches = data.calibration_batches(section.model_copy(update={"batch_size": size}))
    return own_part(batches) if count >= peers else batches
