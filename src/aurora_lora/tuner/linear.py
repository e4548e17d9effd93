"""How linear layers hold their weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_WIDTHS = (("out_features", "in_features"), ("nf", "nx"))
"""How linear layers, of quantisations too, and Transformers' Conv1D call theirs."""


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer holds its weight as (d_in, d_out)."""
    return isinstance(layer, Conv1D)


def upright(layer: nn.Module, weight: Tensor) -> Tensor:
    """(d_out, d_in), a view, from how a linear layer holds its weight; or the other way round."""
    return weight.T if is_transposed(layer) else weight


def has_linear_shape(module: nn.Module) -> bool:
    """Whether the module says how wide a weight it has: see `linear_shape`."""
    return any(hasattr(module, of_output) and hasattr(module, of_input) for of_output, of_input in _WIDTHS)


def linear_shape(layer: Any) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer, of quantisations too, or of a Conv1D of Transformers."""
    of_output, of_input = _WIDTHS[0] if hasattr(layer, "in_features") else _WIDTHS[1]
    return int(getattr(layer, of_output)), int(getattr(layer, of_input))
