"""One layer's part in `probe`: the running sums of its randomised range finding, and what comes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..finite import is_finite
from ..ops.autocast import without_autocast
from ..tuner.tensors import computing_device
from .float64 import ROUNDING, float64_device
from .gradients import See, Weight
from .inputs import Runner

OVERSAMPLING = 8
"""Columns of a sketch beyond the wanted rank."""


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """What was found in one layer: the k leading directions of its gradient G, (d_out, d_in).

    Args:
        layer: its path in the plain model.
        d_out: rows of its weight.
        d_in: columns of its weight; of a convolution, the length of a patch.
        conv_groups: of a convolution; 1 of a linear layer.
        singular_values: (k,), of G, largest first.
        directions: (k, d_in), the right singular vectors of G, one a row.
        deviations: (k,), the standard deviation of `z = v x` over the inputs x, for each direction v.
    """

    layer: str
    d_out: int
    d_in: int
    conv_groups: int
    singular_values: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    deviations: Tensor = field(repr=False)


class Sketch:
    """The running sums of one layer. What is kept between passes is in main memory: Q, or what was found so far."""

    def __init__(self, name: str, weight: Weight, rank: int, seed: int, runner: Runner) -> None:
        self.name, self.weight, self.runner = name, weight, runner
        least = min(weight.d_out, weight.d_in)
        self.rank, self.columns = min(rank, least), min(rank + OVERSAMPLING, least)
        held = next(chain(weight.layer.parameters(), weight.layer.buffers()), None)
        self.device = runner.device if held is None or held.is_meta else computing_device(held)
        self.dtype = torch.float64 if held is not None and held.dtype == torch.float64 else torch.float32
        self.seed = seed
        self.rows: Tensor | None = None  # V^T, (columns, d_in), once it is found
        self.basis = torch.empty(0)  # Q, (d_out, columns), until then
        self.total = torch.empty(0)
        self.singular_values = torch.zeros(1)
        self.held = 0
        self.count = torch.zeros(())

    @property
    def bytes(self) -> int:
        """Bytes of the matrices that a pass works with."""
        return (8 if self.dtype == torch.float64 else 4) * 2 * self.columns * (self.weight.d_in + self.weight.d_out)

    def _omega(self) -> Tensor:
        """Omega^T, (columns, d_in): the same each time."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.columns, self.weight.d_in, generator=draw, dtype=self.dtype, device="cpu")

    def _directions(self) -> Tensor:
        """V^T of the wanted rank."""
        assert self.rows is not None
        return self.rows[: self.rank]

    def sees_inputs(self) -> Any:
        """For the range: of each input x, x Omega is kept, or x where that is smaller; V in place of Omega where it is
        there."""
        rows, weight = (self._omega() if self.rows is None else self.rows).to(self.device), self.weight
        self.total = rows.new_zeros(weight.d_out, self.columns)
        self._of_a_batch = 0

        def keep(x: Tensor) -> tuple[Tensor, See]:
            self._of_a_batch += x.nbytes
            seen = weight.project(x.to(self.device, self.dtype), rows)
            # of a narrow layer, and of each group of a convolution, x Omega can be many times x
            return (seen, see) if seen.nbytes <= x.nbytes else (x, see_input)

        def see_input(x: Tensor, g: Tensor) -> None:
            see(weight.project(x.to(self.device, self.dtype), rows), g)

        def see(seen: Tensor, g: Tensor) -> None:
            by_group = weight.outputs(g).to(self.device, self.dtype).transpose(1, 2) @ seen
            self.total += by_group.reshape(self.total.shape)

        return keep

    def sees_both(self) -> Any:
        """For the co-range: the inputs themselves are kept until the gradient has come."""
        weight = self.weight
        by_group = self.basis.to(self.device).view(weight.groups, -1, self.columns)
        self.total = by_group.new_zeros(weight.d_in, self.columns)

        def keep(x: Tensor) -> tuple[Tensor, See]:
            return x, see

        def see(x: Tensor, g: Tensor) -> None:
            outputs = weight.outputs(g).to(self.device, self.dtype)
            self.total += weight.gather(x.to(self.device, self.dtype), outputs @ by_group)

        return keep

    def end_of_batch(self) -> None:
        self.held, self._of_a_batch = max(self.held, self._of_a_batch), 0

    def end_of_range(self, batches: int) -> None:
        """Y -> Q."""
        self.basis = torch.linalg.qr(self._mean(batches).double())[0].to(self.dtype)
        self.rows = None

    def end_of_co_range(self, batches: int) -> None:
        """G^T Q = V S W^T: singular values and right singular vectors of Q Q^T G, each vector with its largest entry
        positive."""
        V, S, _ = torch.linalg.svd(self._mean(batches).double(), full_matrices=False)
        at_largest = V.gather(0, V.abs().argmax(0, keepdim=True))
        self.rows = (V * torch.where(at_largest < 0, -1.0, 1.0)).T.to(self.dtype).contiguous()
        self.singular_values = S[: self.rank]
        self.basis = torch.empty(0)

    def _mean(self, batches: int) -> Tensor:
        mean = (self.total / batches).cpu()
        self.total = torch.empty(0)
        if not is_finite(mean):
            raise CalibrationError(f"The gradient of {self.name} is not finite: is the model or a batch broken?")
        return mean

    def sees_vectors(self) -> Any:
        """For the deviations: sums of 1, z and z^2 over the vectors that are no padding."""
        rows, weight = self._directions().to(self.device), self.weight
        self.total = torch.zeros(2, self.rank, dtype=torch.float64, device=float64_device(self.device))
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)

        def add(x: Tensor) -> None:
            if type(weight) is Weight:
                x = self.runner.vectors(weight.layer, x)
            with without_autocast(rows):
                z = weight.project(x.to(self.device, self.dtype), rows).flatten(0, 1).to(self.total)
            self.total += torch.stack((z.sum(0), z.square().sum(0)))
            self.count += len(z)

        return add

    def result(self) -> LayerProbe:
        mean, square = (self.total / self.count.to(self.total)).cpu()
        variance = square - mean.square()
        # the same z for all inputs, but for rounding, which is as large where the parts of z cancel out
        variance[variance <= ROUNDING**2 * square.max()] = 0
        return LayerProbe(
            self.name,
            self.weight.d_out,
            self.weight.d_in,
            self.weight.groups,
            self.singular_values.float(),
            self._directions().float(),
            variance.sqrt().float(),
        )
