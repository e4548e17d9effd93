"""The dtypes of a model: what a run keeps and computes in, what a model answers in, and what a merge is written in.

A run computes in `training.precision`, and keeps what it does not train in it. What it trains is in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..deploy.export import DTYPES, rounded
from ..deploy.inputs import plain_model
from ..errors import ArgumentError
from .distributed import state
from .recipe import Precision, Recipe

FLOAT32 = "float32"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M = TypeVar("M", bound=nn.Module)


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the weights that are not trained: as the recipe says; float32 where the body's own are trained.

    The few weights that such a method freezes are in the same modules as those that it trains.
    """
    own = recipe.base.dtype or recipe.training.precision
    return torch.float32 if recipe.method.base_use == "trained" else PRECISIONS[own]


def keep_frozen_in(dtype: torch.dtype, pretrained: Iterable[nn.Parameter]) -> None:
    """Round those of the pretrained weights to a precision that are not trained, where they are."""
    for parameter in pretrained:
        if parameter.is_floating_point() and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def computing(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which a model computes in the recipe's precision, outside of a Trainer."""
    dtype = PRECISIONS[recipe.training.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def check_dtype(dtype: str) -> None:
    """Raise an ArgumentError for one that nothing is loaded, merged or exported in."""
    if dtype not in DTYPES:
        raise ArgumentError(f"`dtype`: {dtype!r} is not allowed: it must be one of {', '.join(DTYPES)}")


def precision_of(dtype: str) -> Precision:
    """What recipes call a dtype."""
    found: Any = next(name for name, one in PRECISIONS.items() if one == DTYPES[dtype])
    return found  # type: ignore[no-any-return]


def on_device(model: M) -> M:
    """A model in eval mode, on the device that training computes on; a quantised one is loaded there."""
    device = state().device
    if next(model.parameters()).device.type != device.type:
        model.to(device)
    return model.eval()


def compute_in(model: nn.Module, dtype: str) -> None:
    """Let a model, plain or of PEFT, compute in a dtype as a training of that precision does, whatever calls it.

    Args:
        model: on the device that it stays on.
        dtype: see `DTYPES`.
    """
    plain: Any = plain_model(model)
    device = next(plain.parameters()).device.type
    plain.forward = torch.autocast(device, DTYPES[dtype])(plain.forward)


def round_weights(model: PreTrainedModel, dtype: str) -> None:
    """Round a model's weights and buffers where they are, and say so in its configuration.

    Args:
        model: unquantised.
        dtype: see `DTYPES`.

    Raises:
        NotFiniteError: a number is too large for the dtype.
    """
    kept = model.state_dict().keys()  # without the constants of masks and the like, which are not saved
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
    for name, tensor in (*model.named_parameters(), *buffers):
        if tensor.is_floating_point():
            tensor.data = rounded(name, tensor.detach(), DTYPES[dtype])
    config: Any = model.config
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
    for one in (config, *parts):
        if one is not None:
            one.dtype = DTYPES[dtype]
