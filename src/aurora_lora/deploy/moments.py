"""The second moments that calibration solves for, gathered within a bound on memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CalibrationError
from .inputs import NO_BATCHES, Batch, Runner, input_geometry
from .products import add_gram, has_slow_float64, mirror, pieces

_NOT_SHARED = (
    "{} saw the same input as {} in the first batch, but not in a later one: call calibrate with share_inputs=False."
)

_SHARED_ELSEWHERE = (
    "{} saw the same input as another layer on one process, but not on all: call calibrate with share_inputs=False."
)


@dataclass(frozen=True)
class Target:
    """A layer whose inputs are wanted, and the AuroRA adapters whose sigma(Ax) is wanted with them."""

    name: str
    module: Any
    """An AuroRA layer, or a layer of PEFT on a linear one."""
    adapters: tuple[str, ...] = ()

    @property
    def d_in(self) -> int:
        """Length of the vectors that the weight acts on."""
        layer = self.module
        return int(layer.d_in if hasattr(layer, "d_in") else linear_shape(layer.get_base_layer())[1])

    @property
    def d_out(self) -> int:
        """Length of the vectors that it gives."""
        return linear_shape(self.module.get_base_layer())[0]


def linear_shape(base_layer: Any) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer, or of a Conv1D of Transformers, whose weight lies the other way round."""
    if hasattr(base_layer, "in_features"):
        return int(base_layer.out_features), int(base_layer.in_features)
    return int(base_layer.nf), int(base_layer.nx)


@dataclass
class SharedInput:
    """The sum of x x^T over the inputs of layers that see the same x, in float64."""

    leader: str  # the layer whose calls are counted; the others must see the same tensors
    geometry: tuple[Any, ...] = ()  # and cut them into the same vectors
    moment: Tensor | None = None  # (d_in, d_in)
    vectors: int = 0
    last: weakref.ref[Tensor] | None = None


@dataclass
class LayerMoments:
    """The running sums of one layer."""

    target: Target
    shared: SharedInput
    vectors: int = 0
    cross: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of sigma(Ax) x^T, (r, d_in)
    power: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of |sigma(Ax)|^2, ()


def float64_device(device: torch.device) -> torch.device:
    """Where float64 can be computed: on the CPU for a device that has none (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def sigma_of_input(layer: LayerMoments, adapter: str, vectors: Tensor) -> Tensor:
    """sigma(Ax), (n, r), as the layer itself computes it in the dynamic form."""
    module = layer.target.module
    A = module.aurora_A[adapter]
    sigma: Tensor = module.sigma(adapter, nn.functional.linear(module._cast_input_dtype(vectors, A.dtype), A))
    return sigma


class Collector:
    """While it is entered, sums the moments of each target's input over the batches that `runner` runs.

    Args:
        runner: runs the model.
        targets: the layers.
        share_inputs: sum x x^T once for layers that are called one after another with the same tensor.
        sliced: take the moments in exact float32 products on devices where float64 is slow; see `add_gram`.
        watch_only: only see which layers share an input, without any sums.
    """

    def __init__(
        self,
        runner: Runner,
        targets: Iterable[Target],
        share_inputs: bool = True,
        *,
        sliced: bool = False,
        watch_only: bool = False,
    ) -> None:
        self.runner = runner
        self.targets = list(targets)
        self.share_inputs = share_inputs
        self.sliced = sliced
        self.watch_only = watch_only
        self.layers: dict[str, LayerMoments] = {}
        self.failure: CalibrationError | None = None
        self._latest: SharedInput | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Collector:
        self._hooks = [t.module.register_forward_pre_hook(self._hook(t), with_kwargs=True) for t in self.targets]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, target: Target) -> Any:
        def collect(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["x"]
            if target.name not in self.layers:
                self.layers[target.name] = LayerMoments(target, self._moments_for(target, x))
            self._add(self.layers[target.name], x)

        return collect

    def run_all(self, batches: Iterable[Batch]) -> None:
        """Run the batches with the hooks in place; if only watching, until every target was reached.

        A CalibrationError is kept for `leaders`, which every process must come to.
        """
        n = 0
        try:
            with self:
                for batch in batches:
                    self.runner.run(batch)
                    n += 1
                    if self.watch_only and len(self.layers) == len(self.targets):
                        break
            if n == 0:
                raise CalibrationError(NO_BATCHES)
            for layer in self._reached():
                if not self.watch_only and layer.vectors != layer.shared.vectors:
                    raise CalibrationError(_NOT_SHARED.format(layer.target.name, layer.shared.leader))
        except CalibrationError as error:
            self.failure = error

    def _moments_for(self, target: Target, x: Tensor) -> SharedInput:
        """At a layer's first call: the moments of the layers called just before with this very tensor, or its own."""
        latest, geometry = self._latest, input_geometry(target.module)
        same = latest is not None and latest.last is not None and latest.last() is x and latest.geometry == geometry
        if self.share_inputs and latest is not None and same:
            return latest
        return SharedInput(target.name, geometry)

    def _add(self, layer: LayerMoments, x: Tensor) -> None:
        vectors = self.runner.vectors(layer.target.module, x)
        shared = self._latest = layer.shared
        leads = shared.leader == layer.target.name
        if leads:
            shared.vectors += len(vectors)
            shared.last = weakref.ref(x)
        elif shared.last is None or shared.last() is not x:
            raise CalibrationError(_NOT_SHARED.format(layer.target.name, shared.leader))
        layer.vectors += len(vectors)
        if self.watch_only:
            return
        if shared.moment is None:
            d = vectors.shape[-1]
            shared.moment = torch.zeros(d, d, dtype=torch.float64, device=float64_device(x.device))
        device = shared.moment.device
        sigmas = {a: sigma_of_input(layer, a, vectors).to(device).double() for a in layer.target.adapters}
        for adapter, sigma in sigmas.items():
            if adapter not in layer.cross:
                layer.cross[adapter] = sigma.new_zeros(sigma.shape[1], vectors.shape[1])
                layer.power[adapter] = sigma.new_zeros(())
            layer.power[adapter] += sigma.square().sum()
        sliced = self.sliced and has_slow_float64(device) and vectors.dtype != torch.float64
        for rows in pieces(len(vectors), vectors.shape[1]):
            narrow = vectors[rows].to(device)
            wide = narrow.double()
            if leads:
                add_gram(shared.moment, narrow if sliced else wide, sliced)
            for adapter, sigma in sigmas.items():
                layer.cross[adapter].addmm_(sigma[rows].T, wide)

    def _reached(self) -> list[LayerMoments]:
        """In the order in which they were first called here."""
        return [layer for layer in self.layers.values() if layer.vectors > 0]

    def leaders(self) -> dict[str, str]:
        """The layer whose input each target shares: the same on every process, in the order of the first calls.

        The order is that of the first process; layers that it did not reach come after, in that of the next.

        Raises:
            CalibrationError: on every process: it failed on one of them, they disagree, or no input reached a target.
        """
        position = {target.name: i for i, target in enumerate(self.targets)}
        seen = [(position[layer.target.name], position[layer.shared.leader]) for layer in self._reached()]
        leader_of: dict[int, int] = {}
        for calls in self._of_all_processes(seen):
            for i, leader in calls:
                if leader_of.setdefault(i, leader) != leader:
                    raise CalibrationError(_SHARED_ELSEWHERE.format(self.targets[i].name))
        for i, target in enumerate(self.targets):
            if i not in leader_of:
                raise CalibrationError(
                    f"No input reached {target.name}: the calibration inputs must use every adapted layer."
                )
        return {self.targets[i].name: self.targets[leader].name for i, leader in leader_of.items()}

    def _of_all_processes(self, seen: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """What each process has seen."""
        if not several_processes():
            if self.failure is not None:
                raise self.failure
            return [seen]
        n = len(self.targets)
        rows = [(int(self.failure is not None), len(seen)), *seen, *[(0, 0)] * (n - len(seen))]
        mine = torch.tensor(rows, device=self.runner.device)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        if self.failure is not None:
            raise self.failure
        found = [gathered.tolist() for gathered in everyone]
        for process, ((failed, _), *_) in enumerate(found):
            if failed:
                raise CalibrationError(f"calibrate failed on process {process}, whose own error says why.")
        return [[(i, leader) for i, leader in calls[:count]] for (_, count), *calls in found]

    def finish(self) -> list[LayerMoments]:
        """The sums over all processes, in the order of the targets.

        Raises:
            CalibrationError: a layer saw no input, one that was not finite, or not the one that it seemed to share.
        """
        leaders = self.leaders()
        reached = {layer.target.name: layer for layer in self._reached()}
        inputs = {layer.shared.leader: layer.shared for layer in reached.values()}
        layers = []
        for target in self.targets:  # the others may have reached what this process did not
            shared = inputs.setdefault(leaders[target.name], SharedInput(leaders[target.name]))
            layers.append(reached.get(target.name) or _without_input(target, shared))
        for shared in inputs.values():
            mirror(moment_of(shared))
        _sum_over_processes(layers)
        for layer in layers:
            if layer.vectors != layer.shared.vectors:
                raise CalibrationError(_NOT_SHARED.format(layer.target.name, layer.shared.leader))
            sums = (moment_of(layer.shared), *layer.cross.values(), *layer.power.values())
            if not all(map(_is_finite, sums)):
                raise CalibrationError(
                    f"The inputs of {layer.target.name} are not finite: is the model or a batch broken?"
                )
        return layers


def _without_input(target: Target, shared: SharedInput) -> LayerMoments:
    """The sums of no vectors."""
    device = next(target.module.parameters()).device
    nothing = torch.zeros((), dtype=torch.float64, device=float64_device(device))
    if shared.moment is None:
        shared.moment = nothing.new_zeros(target.d_in, target.d_in)
    cross = {a: nothing.new_zeros(target.module.r[a], target.d_in) for a in target.adapters}
    return LayerMoments(target, shared, cross=cross, power={a: nothing.clone() for a in target.adapters})


def moment_of(shared: SharedInput) -> Tensor:
    """The sum of x x^T, (d_in, d_in), where there has been an input."""
    assert shared.moment is not None
    return shared.moment


def _is_finite(total: Tensor) -> bool:
    return bool(torch.isfinite(total.sum()))  # without the matrix of booleans that isfinite(total) would make


def gather(collector: Collector, batches: Iterable[Batch]) -> list[LayerMoments]:
    """Run all batches with the collector's hooks in place; the moments of its targets."""
    collector.run_all(batches)
    return collector.finish()


def by_input(moments: Iterable[LayerMoments]) -> Iterator[tuple[Tensor, list[LayerMoments]]]:
    """E[x x^T] (d_in, d_in) in float32, and the layers that share it; the sums are gone then."""
    groups: dict[int, list[LayerMoments]] = {}
    for each in moments:
        groups.setdefault(id(each.shared), []).append(each)
    for together in groups.values():
        shared = together[0].shared
        S = moment_of(shared).div_(shared.vectors).float()
        shared.moment = None
        yield S, together


def several_processes() -> bool:
    """Whether this is one of several processes of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_processes(layers: list[LayerMoments]) -> None:
    """Sum everything over the processes of a distributed run, so that each solves the same system."""
    if not several_processes():
        return
    for shared in {id(layer.shared): layer.shared for layer in layers}.values():
        count = torch.tensor(shared.vectors, device=moment_of(shared).device)
        dist.all_reduce(count)
        dist.all_reduce(moment_of(shared))
        shared.vectors = int(count)
    for layer in layers:
        count = torch.tensor(layer.vectors, device=moment_of(layer.shared).device)
        dist.all_reduce(count)
        layer.vectors = int(count)
        for total in (*layer.cross.values(), *layer.power.values()):
            dist.all_reduce(total)
