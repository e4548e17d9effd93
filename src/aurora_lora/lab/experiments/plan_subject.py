"""What a run of subject-driven generation will need, from the shapes of its U-Net: see `plan`."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from typing import Any

import torch

from ...data.loading import cannot_load
from ...diffusion.recipe import SubjectRecipe
from ...extras import extra
from ...files import located
from ...forms import CALIBRATED
from ...methods import ParameterCounts, count_parameters
from ...methods.base import apply_method
from ...train.models import PRECISIONS
from .known import AUTOENCODER, SDXL, SDXL_UNET, Machine


@lru_cache(maxsize=8)
def _unet(model: str, side: int) -> tuple[Any, float, float, float]:
    """A U-Net without numbers; the floating-point operations of one image with so many pixels a side; and what is kept
    of it: all numbers, and with gradient checkpointing the inputs of the blocks and all of the largest."""
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    try:
        config = SDXL_UNET if model == SDXL else UNet2DConditionModel.load_config(located(model), subfolder="unet")
    except (OSError, ValueError) as error:
        raise cannot_load("model", model, error) from error
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config)).requires_grad_(False)  # type: ignore[no-untyped-call]
    last, work, inputs, blocks = len(unet.down_blocks) - 1, 0.0, 0.0, []
    levels = [
        *enumerate(unet.down_blocks),
        (last, unet.mid_block),
        *zip(range(last, -1, -1), unet.up_blocks, strict=True),
    ]
    for level, part in levels:
        pixels = (side >> level) ** 2
        of_text = (".attn2.to_k.", ".attn2.to_v.")
        work += (
            2.0
            * pixels
            * sum(one.numel() for name, one in part.named_parameters() if not any(text in name for text in of_text))
        )
        for one in part.modules():
            if type(one).__name__ == "BasicTransformerBlock":  # three norms, two attentions, a gated feed-forward
                c = one.norm1.weight.numel()
                work += 4.0 * c * pixels**2
                blocks.append(21.0 * c * pixels)
                inputs += c * pixels
            elif type(one).__name__ == "ResnetBlock2D":  # two norms and two activations
                blocks.append(2.0 * (one.in_channels + one.out_channels) * pixels)
                inputs += one.in_channels * pixels
    return unet, work, sum(blocks), inputs + max(blocks)


def subject_needs(recipe: SubjectRecipe, on: Machine) -> tuple[ParameterCounts, float, dict[str, float]]:
    """Parameters, bytes at the peak, and hours of each part of a run of subject-driven generation.

    The U-Net and the autoencoder are there; a step is two passes more than a forward one where activations are
    computed again, else one; an image is drawn in the recipe's steps, of two passes with guidance.
    """
    training, forms = recipe.training, len(recipe.method.forms)
    unet, work, whole, checkpointed = _unet(recipe.model, recipe.task.resolution // 8)
    with torch.device("meta"):
        params = count_parameters(apply_method(recipe.method, copy.deepcopy(unet), "TEXT_TO_IMAGE"))
    of_pass = training.batch_size * (1 if recipe.prior is None else 2)
    weight, width = (PRECISIONS[one].itemsize for one in (recipe.weights_precision, training.precision))
    passing = width * of_pass * (checkpointed if training.gradient_checkpointing else whole)
    memory = weight * (params.total - params.adapter + AUTOENCODER) + passing + 16 * params.adapter
    looks = 1 + math.ceil(training.steps / recipe.validation.every)
    scored = 0 if recipe.scores is None else len(recipe.scores.prompts) * recipe.scores.images_per_prompt
    images = len(recipe.validation_prompts) * (looks + forms) + scored * forms
    images += 0 if recipe.prior is None else recipe.prior.images
    drawing = (2 if recipe.validation.guidance_scale > 1 else 1) * recipe.validation.inference_steps + 1
    steps = of_pass * training.gradient_accumulation_steps * training.steps
    passes = {
        "training": (3 if training.gradient_checkpointing else 2) * steps,
        "evaluation": recipe.validation.noise_samples * (looks + forms),
        "calibration": 2 * recipe.calibration.examples if CALIBRATED in recipe.method.forms else 0,
        "generation": images * drawing,
    }
    seconds = work / on.speed(training.precision, training.threads)
    parts = {name: count * seconds / 3600 for name, count in passes.items()}
    return params, memory, {**parts, "loading": (10 + weight * params.total / 0.5e9) / 3600}
