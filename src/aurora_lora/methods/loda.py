"""LoDA (Liu et al., "LoDA: Low-Dimensional Adaptation of Large Language Models", NeurIPS 2023 workshop)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from ..errors import FormError
from .adapted_module import Update
from .base import Options
from .injection import UpdateMethod
from .linear import Linear
from .options import LOW_RANK, fields, number


class LoDA(Update):
    """`s B f(A x)` with the nonlinear map of the low dimension `f(z) = act(M2 act(M1 z))`, act = LeakyReLU.

    M1 and M2 are (r, r) and start at the identity: f then starts near it, and with slope 1 it is LoRA.
    """

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.slope: float = options["negative_slope"]
        self.M1 = nn.Parameter(torch.eye(self.r, dtype=self.A.dtype, device=self.A.device))
        self.M2 = nn.Parameter(torch.eye(self.r, dtype=self.A.dtype, device=self.A.device))

    def forward(self, x: Tensor) -> Tensor:
        z = linear(self.dropout(x), self.A)  # (..., r)
        z = leaky_relu(linear(z, self.M1), self.slope)
        z = leaky_relu(linear(z, self.M2), self.slope)
        return self.scaling * linear(z, self.B)

    def delta_weight(self) -> Tensor:
        raise FormError("LoDA's update is not linear in the layer's input: there is no dW.")


LODA = UpdateMethod(
    name="loda",
    description="W0 x + s B f(A x); cannot be merged",
    update=LoDA,
    fields=fields({**LOW_RANK, "negative_slope": number(0.8, ge=0, le=1)}),
    refusal="its update s B f(A x) is not linear in the layer's input",
)
