"""`AuroraLinear`: AuroRA on a linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from .layer import AuroraLayer


class AuroraLinear(AuroraLayer):
    """AuroRA on `nn.Linear`, transformers' `Conv1D` or a quantised linear layer (Eq. 4)."""

    def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (..., d_in) -> (..., r)."""
        return functional.linear(x, matrix)

    def lift(self, z: Tensor, B: Tensor, x: Tensor) -> Tensor:
        """z (..., r) -> (..., d_out)."""
        return functional.linear(z, B)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """(d_out, d_in), or its transpose for Conv1D."""
        return matrix.T if self.fan_in_fan_out else matrix

    def input_vectors(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (n, d_in)."""
        return x.reshape(-1, x.shape[-1])
