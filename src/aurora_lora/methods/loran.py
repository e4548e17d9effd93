"""LoRAN (Li, Song and Hou, "LoRAN: Improved Low-Rank Adaptation by a Non-Linear Transformation", EMNLP 2024)."""

from __future__ import annotations

from torch import Tensor

from .adapted_module import WeightUpdate
from .base import Options
from .injection import UpdateMethod
from .linear import Linear
from .options import LOW_RANK, fields, number, positive


class LoRAN(WeightUpdate):
    """`dW = s sinter(B A)` with `sinter(u) = u + a u sin(w u)`, entry by entry."""

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.amplitude: float = options["amplitude"]
        self.frequency: float = options["frequency"]

    def delta_weight(self) -> Tensor:
        return self.scaling * sinter(self.B @ self.A, self.amplitude, self.frequency)


def sinter(u: Tensor, amplitude: float, frequency: float) -> Tensor:
    """`u + a u sin(w u)`, of u's shape."""
    return u + amplitude * u * (frequency * u).sin()


LORAN = UpdateMethod(
    name="loran",
    description="dW = s sinter(B A), sinter(u) = u + a u sin(w u)",
    update=LoRAN,
    fields=fields({**LOW_RANK, "amplitude": number(5e-5, ge=0), "frequency": positive(1e4)}),
)
