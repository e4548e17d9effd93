"""The dtype that a model answers in, or that a merge is written in."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..deploy.export import DTYPES, rounded
from ..deploy.inputs import plain_model
from ..errors import ArgumentError
from .distributed import state
from .memory import PRECISIONS
from .sections import Precision

FLOAT32 = "float32"

M = TypeVar("M", bound=nn.Module)


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
