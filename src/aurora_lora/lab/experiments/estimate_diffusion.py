"""What a run of subject-driven generation will need, from the U-Net's shapes alone: it is run on the meta device.

- Floating-point operations are those that PyTorch counts for one forward pass. A training step makes two more such
  passes: backward through the frozen weights, and forward again where activations are recomputed. An image is made in
  as many steps as the recipe says, of two passes with guidance.
- Activations are counted as autograd would keep them. With gradient checkpointing they are the inputs of the
  recomputed blocks, and all that the largest block keeps.
- Weights: the U-Net and the autoencoder; the text encoders are gone when the training begins.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import torch

from ...data.loading import cannot_load
from ...diffusion.recipe import SubjectRecipe
from ...extras import extra
from ...files import located
from ...forms import CALIBRATED
from ...methods import ParameterCounts, count_parameters, get_method
from ...methods.apply import apply_method
from ..saved_tensors import count_saved
from .fake_models import fused_attention
from .flops import CALIBRATION, WIDTH, Hours, loading
from .machines import Machine

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""From the published config.json: the fields that differ from the defaults."""
AUTOENCODER = 83_653_863
"""Parameters of SDXL's."""
DECODING = 1
"""Passes of the U-Net that it is worth to make an image of what the U-Net has drawn."""
SHRINKS, TOKENS = 8, 77
"""The autoencoder shrinks an image's side by this; a prompt has so many tokens."""


def trained_parameters(recipe: SubjectRecipe) -> ParameterCounts:
    """The parameters that the recipe trains, and all of the U-Net.

    Raises:
        UserError: the model cannot be had, or the method does not fit it.
    """
    options = json.dumps(recipe.method.options, sort_keys=True)
    return _count(recipe.model, recipe.method.name, options)


def memory(recipe: SubjectRecipe) -> float:
    """Bytes at the peak of a training step."""
    params, training = trained_parameters(recipe), recipe.training
    _, kept = _measure(recipe.model, recipe.task.resolution // SHRINKS, training.gradient_checkpointing)
    frozen = params.total - params.adapter + AUTOENCODER
    held = WIDTH[training.precision] * kept * _images_of_a_pass(recipe)
    return WIDTH[recipe.weights_precision] * frozen + held + 16 * params.adapter


def hours(recipe: SubjectRecipe, machine: Machine) -> Hours:
    """Hours of each part of a run: noise prediction on held images is its evaluation, making images its generation."""
    training = recipe.training
    operations, _ = _measure(recipe.model, recipe.task.resolution // SHRINKS, training.gradient_checkpointing)
    one = operations / machine.speed(training.precision, training.threads) / 3600
    passes = _images_of_a_pass(recipe) * training.gradient_accumulation_steps * training.steps
    held = recipe.validation.noise_samples * (_validations(recipe) + len(_forms(recipe)))
    calibrations = recipe.calibration.examples if CALIBRATED in _forms(recipe) else 0
    guided = 2 if recipe.validation.guidance_scale > 1 else 1
    drawing = guided * recipe.validation.inference_steps + DECODING
    return Hours(
        training=(3 if training.gradient_checkpointing else 2) * passes * one,
        evaluation=held * one,
        calibration=CALIBRATION * calibrations * one,
        generation=images(recipe) * drawing * one,
        loading=loading(WIDTH[recipe.weights_precision] * trained_parameters(recipe).total),
    )


def images(recipe: SubjectRecipe) -> int:
    """How many images a run generates: at its start and validations, in each form, to be scored, of the class."""
    prompts, forms = len(recipe.validation_prompts), len(_forms(recipe))
    scored = 0 if recipe.scores is None else len(recipe.scores.prompts) * recipe.scores.images_per_prompt
    of_class = 0 if recipe.prior is None else recipe.prior.images
    return prompts * (_validations(recipe) + forms) + scored * forms + of_class


def _validations(recipe: SubjectRecipe) -> int:
    """One before the training, one every so many steps, one in the end."""
    return 1 + math.ceil(recipe.training.steps / recipe.validation.every)


def _forms(recipe: SubjectRecipe) -> tuple[str, ...]:
    return tuple(recipe.method.forms)


def _images_of_a_pass(recipe: SubjectRecipe) -> int:
    return recipe.training.batch_size * (2 if recipe.prior is not None else 1)


@lru_cache(maxsize=32)
def _unet_config(model: str) -> str:
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    if model == SDXL:
        return json.dumps(SDXL_UNET)
    try:
        config = UNet2DConditionModel.load_config(located(model), subfolder="unet")
    except (OSError, ValueError) as error:
        raise cannot_load("model", model, error) from error
    return json.dumps(dict(config))


def _unet(model: str) -> Any:
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    config = json.loads(_unet_config(model))
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config).requires_grad_(False)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=64)
def _count(model: str, method: str, options: str) -> ParameterCounts:
    unet = _unet(model)
    with torch.device("meta"):
        return count_parameters(apply_method(get_method(method).bind(json.loads(options)), unet, "TEXT_TO_IMAGE"))


@lru_cache(maxsize=8)
def _measure(model: str, side: int, checkpointing: bool) -> tuple[int, int]:
    """Floating-point operations, and numbers kept for the backward pass, of one image."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from torch.utils.flop_counter import FlopCounterMode

    unet = _unet(model)
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    inputs: dict[str, Any] = {
        "sample": torch.empty(1, config.in_channels, side, side, device="meta", requires_grad=True),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, TOKENS, config.cross_attention_dim, device="meta"),
        "added_cond_kwargs": {
            "text_embeds": torch.empty(1, pooled, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        },
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**inputs)
    blocks = (module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D)))
    with fused_attention():
        kept = count_saved(lambda: unet(**inputs), (*unet.parameters(), *unet.buffers()), blocks)
    return counter.get_total_flops(), kept.bytes(checkpointing) // 4
