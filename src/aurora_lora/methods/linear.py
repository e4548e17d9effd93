"""The linear layers that methods adapt: `torch.nn.Linear` and GPT-2's `Conv1D`, whose weight is transposed."""

from __future__ import annotations

from collections import Counter
from typing import TypeGuard

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..tuner.linear import upright

Linear = nn.Linear | Conv1D


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    """Whether the module computes `W x + b`, its weight quantised or not."""
    return isinstance(module, nn.Linear | Conv1D)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it does so with a weight in floating point, which can be changed."""
    return type(module) in (nn.Linear, Conv1D) and module.weight.is_floating_point()  # type: ignore[operator]


def matrix(layer: Linear) -> Tensor:
    """W (d_out, d_in), a view of the layer's weight."""
    return upright(layer, layer.weight)


def untie_adapted(model: nn.Module) -> None:
    """Give each adapted module whose weight another module has too (tied embeddings) one of its own.

    A merge then changes the adapted module alone.
    """
    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        weight = getattr(base, "weight", None)
        if isinstance(base, nn.Module) and isinstance(weight, nn.Parameter) and uses[id(weight)] > 1:
            uses[id(weight)] -= 1
            base.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
