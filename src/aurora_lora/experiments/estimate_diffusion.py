"""What a run of subject-driven generation will need, from the U-Net's shapes alone: it is run on the meta device.

- Floating-point operations are those that PyTorch counts for one forward pass. A training step makes two more such
  passes: backward through the frozen weights, and forward again where activations are recomputed.
- Activations are counted as autograd would keep them. With gradient checkpointing they are the inputs of the
  recomputed blocks, and all that the largest block keeps.
- Weights: the U-Net and the autoencoder; the text encoders are gone when the training begins.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.recipe import SubjectRecipe
from ..errors import UserError
from ..methods import ParameterCounts, count_parameters, get_method
from ..tasks._extra import diffusion_extra

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
SHRINKS, TOKENS = 8, 77
"""The autoencoder shrinks an image's side by this; a prompt has so many tokens."""


def trained_parameters(recipe: SubjectRecipe) -> ParameterCounts:
    """The parameters that the recipe trains, and all of the U-Net.

    Raises:
        UserError: the model cannot be had, or the method does not fit it.
    """
    options = json.dumps(recipe.method.options, sort_keys=True)
    return _count(recipe.model, recipe.method.name, options)


def passes(recipe: SubjectRecipe) -> tuple[float, float]:
    """Floating-point operations and bytes kept of one forward pass of one process."""
    training = recipe.training
    width = 4 if training.precision == "fp32" else 2
    images = training.batch_size * (2 if recipe.prior is not None else 1)
    operations, kept = _measure(recipe.model, recipe.task.resolution // SHRINKS, training.gradient_checkpointing)
    return operations * images, kept * images * width


@lru_cache(maxsize=32)
def _unet_config(model: str) -> str:
    with diffusion_extra():
        from diffusers import UNet2DConditionModel
    if model == SDXL:
        return json.dumps(SDXL_UNET)
    try:
        config = UNet2DConditionModel.load_config(model, subfolder="unet")
    except (OSError, ValueError) as error:
        raise UserError(f"model: {model!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    return json.dumps(dict(config))


def _unet(model: str) -> Any:
    with diffusion_extra():
        from diffusers import UNet2DConditionModel
    config = json.loads(_unet_config(model))
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config).requires_grad_(False)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=64)
def _count(model: str, method: str, options: str) -> ParameterCounts:
    unet = _unet(model)
    with torch.device("meta"):
        try:
            return count_parameters(get_method(method).apply(unet, json.loads(options), "TEXT_TO_IMAGE"))
        except ValueError as error:
            raise UserError(f"method: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=8)
def _measure(model: str, side: int, checkpointing: bool) -> tuple[int, int]:
    """Floating-point operations, and numbers kept for the backward pass, of one image."""
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
    kept = _Kept(unet)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
        unet(**inputs)
    return counter.get_total_flops(), kept.numbers(checkpointing)


class _Kept:
    """Counts what autograd keeps, by block."""

    def __init__(self, unet: nn.Module) -> None:
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        self.seen = {id(parameter) for parameter in unet.parameters()}
        self.held: list[Tensor] = []  # so that no identity is given twice
        self.outside, self.inputs, self.blocks = 0, 0, [0]
        self.inside = False
        for module in unet.modules():
            if isinstance(module, (BasicTransformerBlock, ResnetBlock2D)):
                module.register_forward_pre_hook(self._enter, with_kwargs=True)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        self.inputs += given.numel()
        self.blocks.append(0)
        self.inside = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside = False

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept, once, unless it is a weight."""
        base = tensor._base if tensor._base is not None else tensor
        if id(base) in self.seen:
            return tensor
        self.seen.add(id(base))
        self.held.append(base)
        if self.inside:
            self.blocks[-1] += base.numel()
        else:
            self.outside += base.numel()
        return tensor

    def numbers(self, checkpointing: bool) -> int:
        """All that is kept; with checkpointing, the blocks' inputs and the largest block in place of the blocks."""
        if checkpointing:
            return self.outside + self.inputs + max(self.blocks)
        return self.outside + sum(self.blocks)
