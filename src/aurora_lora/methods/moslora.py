"""MoSLoRA (Wu et al., "Mixture-of-Subspaces in Low-Rank Adaptation", EMNLP 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .adapted_module import Update, kaiming
from .base import Options
from .injection import UpdateMethod
from .linear import Linear
from .options import LOW_RANK, choice, fields


class MoSLoRA(Update):
    """`dW = s B W A` with a mixer W (r, r) between the two matrices.

    The mixer starts Kaiming-uniform (sqrt 5) or orthogonal: the paper reports both, its code uses the first.
    """

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.mixer = nn.Parameter(torch.empty(self.r, self.r, dtype=self.A.dtype, device=self.A.device))
        if options["mixer_init"] == "orthogonal":
            nn.init.orthogonal_(self.mixer)
        else:
            kaiming(self.mixer)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaling * linear(linear(linear(self.dropout(x), self.A), self.mixer), self.B)

    def delta_weight(self) -> Tensor:
        return self.scaling * (self.B @ self.mixer @ self.A)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scaling * self.B, self.mixer @ self.A


MOSLORA = UpdateMethod(
    name="moslora",
    description="LoRA with an r x r mixer, W0 x + s B W A x",
    update=MoSLoRA,
    fields=fields({**LOW_RANK, "mixer_init": choice("kaiming", "orthogonal")}),
)
