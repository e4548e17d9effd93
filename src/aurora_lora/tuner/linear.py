"""`AuroraLinear`: AuroRA on a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..ops import add_update, linear_with_update
from ..ops.update import can_fuse
from .layer import AuroraLayer


class AuroraLinear(AuroraLayer):
    """AuroRA on `nn.Linear`, transformers' `Conv1D` or a quantised linear layer (Eq. 4): x (..., d_in), A (r, d_in),
    B (d_out, r), output (..., d_out).
    """

    def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = is_transposed(self.get_base_layer())

    def base_and_adapter_output(self, adapter_name: str, x: Tensor) -> Tensor | None:
        """Both outputs in one, where the base is a plain frozen nn.Linear without hooks, and there is no dropout."""
        base: Any = self.base_layer
        if torch.compiler.is_compiling() or self._drops_out(adapter_name):
            return None
        if type(base) is not nn.Linear or _is_hooked(base):
            return None
        if not can_fuse(x, base.weight, base.bias, self.aurora_B[adapter_name]):
            return None  # before sigma(A) is computed in vain
        return linear_with_update(x, base.weight, base.bias, *self.update_of(adapter_name))

    def _drops_out(self, adapter_name: str) -> bool:
        dropout = self.aurora_dropout[adapter_name]  # which may be trained alone, as for Monte Carlo dropout
        return dropout.training and getattr(dropout, "p", 0.0) > 0

    def add_adapter_output(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """result + s B sigma(A x), in one call."""
        update = self.update_of(adapter_name)
        x = self.aurora_dropout[adapter_name](self._cast_input_dtype(x, update[0].dtype))
        return add_update(result, x, *update)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every mergeable form is a LoRA; `get_delta_weight` refuses the one that is not."""
        return True

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (..., d_in) -> (..., r)."""
        return functional.linear(x, matrix)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """(d_out, d_in), or its transpose for Conv1D."""
        return matrix.T if self.fan_in_fan_out else matrix  # also while another base layer stands in

    def input_vectors(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (n, d_in)."""
        return x.reshape(-1, x.shape[-1])


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer holds its weight as (d_in, d_out)."""
    return isinstance(layer, Conv1D)


def upright(layer: nn.Module, weight: Tensor) -> Tensor:
    """(d_out, d_in), a view, from how a linear layer holds its weight; or the other way round."""
    return weight.T if is_transposed(layer) else weight


_WIDTHS = (("out_features", "in_features"), ("nf", "nx"))
"""How linear layers, of quantisations too, and Transformers' Conv1D call theirs."""


def has_linear_shape(module: nn.Module) -> bool:
    """Whether the module says how wide a weight it has: see `linear_shape`."""
    return any(hasattr(module, of_output) and hasattr(module, of_input) for of_output, of_input in _WIDTHS)


def linear_shape(layer: Any) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer, of quantisations too, or of a Conv1D of Transformers."""
    of_output, of_input = _WIDTHS[0] if hasattr(layer, "in_features") else _WIDTHS[1]
    return int(getattr(layer, of_output)), int(getattr(layer, of_input))


def _is_hooked(module: nn.Module) -> bool:
    """Whether something wants to see that this module is called."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    every = torch.nn.modules.module  # the hooks on all modules
    common = (
        every._global_forward_hooks,
        every._global_forward_pre_hooks,
        every._global_backward_hooks,
        every._global_backward_pre_hooks,
    )
    return any(own) or any(common) or "forward" in vars(module)
