"""SineLoRA (Ji et al., "Efficient Learning with Sine-Activated Low-Rank Matrices", ICLR 2025)."""

from __future__ import annotations

import math

from torch import Tensor

from .adapted_module import WeightUpdate
from .base import Options
from .injection import UpdateMethod
from .linear import Linear
from .options import LOW_RANK, fields, positive


class SineLoRA(WeightUpdate):
    """`dW = s sin(w B A) / sqrt(d_in)`: the sine, entry by entry, lifts the rank above r."""

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.frequency: float = options["frequency"]

    def delta_weight(self) -> Tensor:
        d_in = self.A.shape[1]
        return (self.scaling / math.sqrt(d_in)) * (self.frequency * (self.B @ self.A)).sin()


SINE_LORA = UpdateMethod(
    name="sine-lora",
    description="dW = s sin(w B A) / sqrt(d_in)",
    update=SineLoRA,
    fields=fields({**LOW_RANK, "frequency": positive(200.0)}),
)
