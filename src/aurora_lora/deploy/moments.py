"""The second moments that calibration solves for: sums over the input vectors of layers, in float64."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..finite import is_finite
from ..tuner.linear import linear_shape
from ..tuner.tensors import changes, computing_device
from .float64 import float64_device, has_slow_float64, row_pieces
from .processes import count_over_processes, sum_over_processes
from .products import add_gram, mirror


@dataclass(frozen=True)
class Target:
    """A layer whose inputs are wanted, and the AuroRA adapters whose sigma(Ax) is wanted with them."""

    name: str
    """The layer's path in the plain model."""
    module: Any
    """An AuroRA layer, or a layer of PEFT on a linear one."""
    adapters: tuple[str, ...] = ()
    is_idle: Callable[[], bool] = lambda: False
    """Whether its adapters add nothing to any input, so that none has to reach it; the same on every process."""

    @property
    def d_in(self) -> int:
        """Length of the vectors that the weight acts on."""
        layer = self.module
        return int(layer.d_in if hasattr(layer, "d_in") else linear_shape(layer.get_base_layer())[1])

    @property
    def d_out(self) -> int:
        """Length of the vectors that it gives."""
        return linear_shape(self.module.get_base_layer())[0]


@dataclass
class SharedInput:
    """The sum of x x^T over the inputs of layers that see the same x, in float64."""

    leader: str  # the layer whose calls are counted; the others must see the same tensors
    geometry: tuple[Any, ...] = ()  # and cut them into the same vectors
    moment: Tensor | None = None  # (d_in, d_in), its lower triangle until `finish`
    vectors: int = 0
    last: tuple[weakref.ref[Tensor], int] | None = None  # and how often it had been changed in place

    def see(self, x: Tensor) -> None:
        """The leader is called with x."""
        self.last = weakref.ref(x), changes(x)

    def is_seen(self, x: Tensor) -> bool:
        """Whether x is known to be what the leader was last called with, and unchanged since."""
        if self.last is None or x.is_inference():  # of which no changes are counted
            return False
        return self.last[0]() is x and self.last[1] == changes(x)

    def make_room(self, d_in: int, device: torch.device) -> Tensor:
        """The sum, which starts as zeros."""
        if self.moment is None:
            self.moment = torch.zeros(d_in, d_in, dtype=torch.float64, device=float64_device(device))
        return self.moment

    def finish(self) -> None:
        """The whole sum, over all processes."""
        moment = moment_of(self)
        mirror(moment)
        self.vectors = count_over_processes(self.vectors, moment.device)
        sum_over_processes(moment)


@dataclass
class LayerMoments:
    """The running sums of one layer."""

    target: Target
    shared: SharedInput
    vectors: int = 0
    cross: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of sigma(Ax) x^T, (r, d_in)
    power: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of |sigma(Ax)|^2, ()

    @property
    def leads(self) -> bool:
        """Whether it is this layer's calls that the shared sum is taken of."""
        return self.shared.leader == self.target.name

    def make_room(self, device: torch.device) -> Tensor:
        """Sums that start as zeros; the shared one."""
        d_in = self.target.d_in
        moment = self.shared.make_room(d_in, device)
        for adapter in self.target.adapters:
            if adapter not in self.cross:
                self.cross[adapter] = moment.new_zeros(int(self.target.module.r[adapter]), d_in)
                self.power[adapter] = moment.new_zeros(())
        return moment

    def add(self, vectors: Tensor, sliced: bool) -> None:
        """Add the sums over vectors (n, d_in) of the layer's input.

        Args:
            sliced: take x x^T in exact float32 products where float64 is slow; see `add_gram`.
        """
        moment = self.make_room(vectors.device)
        device = moment.device
        sigmas = {a: sigma_of_input(self, a, vectors).to(device).double() for a in self.target.adapters}
        for adapter, sigma in sigmas.items():
            self.power[adapter] += sigma.square().sum()
        sliced = sliced and has_slow_float64(device) and vectors.dtype != torch.float64
        for rows in row_pieces(len(vectors), vectors.shape[1]):
            narrow = vectors[rows].to(device)
            wide = narrow.double()
            if self.leads:
                add_gram(moment, narrow if sliced else wide, sliced)
            for adapter, sigma in sigmas.items():
                self.cross[adapter].addmm_(sigma[rows].T, wide)

    def finish(self) -> None:
        """The sums over all processes, but for the shared one."""
        self.vectors = count_over_processes(self.vectors, moment_of(self.shared).device)
        sum_over_processes(*self.cross.values(), *self.power.values())

    def is_finite(self) -> bool:
        """Whether all its sums are."""
        return all(map(is_finite, (moment_of(self.shared), *self.cross.values(), *self.power.values())))


def sigma_of_input(layer: LayerMoments, adapter: str, vectors: Tensor) -> Tensor:
    """sigma(Ax), (n, r), as the layer itself computes it in the dynamic form."""
    module = layer.target.module
    sigma: Tensor = module.sigma(adapter, module.hidden_values(adapter, vectors))
    return sigma


def moment_of(shared: SharedInput) -> Tensor:
    """The sum of x x^T, (d_in, d_in), where there has been an input."""
    assert shared.moment is not None
    return shared.moment


def by_input(layers: list[LayerMoments]) -> Iterator[list[LayerMoments]]:
    """The layers that share each input. The list is emptied: sums go as soon as the caller has done with them."""
    groups: dict[int, list[LayerMoments]] = {}
    for layer in layers:
        groups.setdefault(id(layer.shared), []).append(layer)
    layers.clear()
    while groups:
        yield groups.pop(next(iter(groups)))


def means_by_input(layers: list[LayerMoments]) -> Iterator[tuple[Tensor, list[LayerMoments]]]:
    """E[x x^T] (d_in, d_in) in float32, where the layers compute, and the layers that share it; the sums are gone then.

    Raises:
        CalibrationError: inputs whose squares are finite in float64 alone.
    """
    for together in by_input(layers):
        shared = together[0].shared
        S = moment_of(shared).div_(shared.vectors).float()
        shared.moment = None
        if not is_finite(S):
            raise CalibrationError(
                f"The inputs of {shared.leader} are too large, above 1e19: is the model or a batch broken?"
            )
        device = computing_device(next(together[0].target.module.parameters()))
        # elsewhere the sums are where they belong; a weight that is offloaded says nothing of that
        yield S if float64_device(device) == device else S.to(device), together
