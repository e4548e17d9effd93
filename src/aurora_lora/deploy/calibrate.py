"""`calibrate`: the best linear stand-in for a trained adapter (method.md, section 5)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CalibrationError, FormError
from ..tuner import AuroraLinear, active_adapters, aurora_layers, set_form

Batch = Mapping[str, Any] | Tensor

_NOT_SHARED = (
    "{} saw the same input as {} in the first batch, but not in a later one: call calibrate with share_inputs=False."
)


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration found for one adapter of one layer."""

    layer: str
    adapter: str
    vectors: int
    """Input vectors that the moments were taken over (padding left out)."""
    explained: float
    """Share of E|sigma(Ax)|^2 that A_cal x reproduces on the calibration inputs: 1 is exact."""
    ridge: float
    """lambda, as it was added to the diagonal of E[x x^T]."""


@dataclass(frozen=True)
class CalibrationReport:
    """The result of `calibrate`, layer by layer."""

    layers: tuple[LayerCalibration, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass
class _SharedInput:
    """The sum of x x^T over the inputs of layers that see the same x, in float64."""

    leader: str  # the layer whose calls are counted; the others must see the same tensors
    moment: Tensor  # (d_in, d_in)
    vectors: int = 0
    last: weakref.ref[Tensor] | None = None


@dataclass
class _Layer:
    """The running sums of one layer."""

    name: str
    module: AuroraLinear
    adapters: list[str]
    shared: _SharedInput
    vectors: int = 0
    cross: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of sigma(Ax) x^T, (r, d_in)
    power: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sum of |sigma(Ax)|^2, ()


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    adapter_name: str | None = None,
    ridge: float = 1e-4,
    share_inputs: bool = True,
) -> CalibrationReport:
    """Find and store, for each AuroRA layer, the linear map that stands in for the trained adapter best:

        A_cal = argmin_M E|sigma(Ax) - Mx|^2 + lambda |M|^2 = E[sigma(Ax) x^T] (E[x x^T] + lambda I)^-1,   (r, d_in)

    over the inputs x that reach the layer when the trained (dynamic) model runs on `batches`. As the layer's output is
    s B sigma(Ax), `s B A_cal` is then the best linear map for the whole update, and still of rank r. Moments are taken
    and solved in float64; layers that see the same input (q, k and v) share them. The matrices are stored with the
    adapter; `eval_form` is not changed. Training mode, hooks and the random state are as before when it returns or
    raises.

    With `torch.distributed` initialised, the moments are summed over all processes: call it on every one of them.

    Args:
        model: a model with AuroRA adapters trained in the dynamic form.
        batches: a few hundred inputs: dicts of tensors, passed to the model as keyword arguments, or single tensors.
            Positions where a 2-d `attention_mask` is 0 are left out.
        adapter_name: which adapter; all active ones if None. It must be active.
        ridge: lambda in units of the mean of the diagonal of E[x x^T].
        share_inputs: sum E[x x^T] once for layers that are called one after another with the same tensor. Off costs
            time and memory, and is needed only by models that do so in some passes and not in others.

    Returns:
        A report with the explained share of each layer.

    Raises:
        CalibrationError: no batches, an input that is not finite, a layer that no input reached, a merged adapter, or
            adapters that are switched off. The adapter is left as it was.
        FormError: the adapter was trained in the static form, which merges exactly as it is.
        ValueError: no AuroRA adapter, no such active adapter, or a negative ridge.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge!r} is not allowed: it must be a number of at least 0.")
    names = _adapters_to_calibrate(model, adapter_name)
    with _trained_state(model):
        layers = _accumulate(_Collector(model, names, share_inputs), batches)
    solved = [_solve(layer, name, ridge) for layer in layers for name in layer.adapters]
    for layer, name, matrix, _ in solved:  # only now, so that an error above leaves the adapter as it was
        layer.module.set_calibration(name, matrix)
        layer.module.aurora_config[name].calibrated = True
    return CalibrationReport(tuple(report for *_, report in solved))


def _adapters_to_calibrate(model: nn.Module, adapter_name: str | None) -> list[str]:
    active = active_adapters(model)
    names = active if adapter_name is None else [adapter_name]
    for name in names:
        if name not in active:
            raise ValueError(f"adapter_name={name!r} is not an active AuroRA adapter (active: {', '.join(active)}).")
    for layer_name, layer in aurora_layers(model):
        if layer.merged:
            raise CalibrationError(f"{layer_name} is merged: call unmerge_adapter() before calibrate.")
        if layer.disable_adapters:
            raise CalibrationError(f"The adapters of {layer_name} are switched off: enable them before calibrate.")
        for name in names:
            if name in layer.aurora_config and layer.aurora_config[name].train_form == "static":
                raise FormError(
                    f"Adapter {name!r} was trained in the static form, which merges exactly: nothing to calibrate."
                )
    return names


@contextmanager
def _trained_state(model: nn.Module) -> Iterator[None]:
    """Eval mode, dynamic form, no gradients; everything as before at the end, also after an error."""
    modes = {module: module.training for module in model.modules()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(set_form(model, "dynamic"))
        try:
            for module in modes:
                module.training = False
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _accumulate(collector: _Collector, batches: Iterable[Batch]) -> list[_Layer]:
    n_batches = 0
    with collector:
        for batch in batches:
            collector.run(batch)
            n_batches += 1
    if n_batches == 0:
        raise CalibrationError("calibrate needs at least one batch of inputs, and `batches` gave none.")
    layers = collector.finish()
    _sum_over_processes(layers)
    for layer in layers:
        if not all(torch.isfinite(total).all() for total in (layer.shared.moment, *layer.cross.values())):
            raise CalibrationError(f"The inputs of {layer.name} are not finite: is the model or a batch broken?")
    return layers


class _Collector:
    """Runs batches through the model and sums the moments of each layer's input."""

    def __init__(self, model: nn.Module, names: list[str], share_inputs: bool) -> None:
        self.model = model
        self.share_inputs = share_inputs
        self.device = next(model.parameters()).device
        self.mask: Tensor | None = None
        self.targets = {
            name: (module, adapters)
            for name, module in aurora_layers(model)
            if (adapters := [adapter for adapter in names if adapter in module.aurora_A])
        }
        self.layers: dict[str, _Layer] = {}
        self.latest: _SharedInput | None = None
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Collector:
        for name, (module, adapters) in self.targets.items():
            self.hooks.append(module.register_forward_pre_hook(self._hook(name, module, adapters), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def run(self, batch: Batch) -> None:
        """One forward pass; the hooks do the work."""
        self.mask = None
        if isinstance(batch, Tensor):
            self.model(batch.to(self.device))
        elif isinstance(batch, Mapping) or hasattr(batch, "keys"):
            inputs = {key: v.to(self.device) if isinstance(v, Tensor) else v for key, v in batch.items()}
            mask = inputs.get("attention_mask")
            self.mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
            self.model(**inputs)
        else:
            raise TypeError(f"A batch must be a dict of tensors or a tensor, not {type(batch).__name__}.")

    def finish(self) -> list[_Layer]:
        """All layers, in the order of the model; each must have seen an input."""
        for name in self.targets:
            if name not in self.layers or self.layers[name].vectors == 0:
                raise CalibrationError(f"No input reached {name}: the calibration inputs must use every adapted layer.")
            layer = self.layers[name]
            if layer.vectors != layer.shared.vectors:
                raise CalibrationError(_NOT_SHARED.format(name, layer.shared.leader))
        return [self.layers[name] for name in self.targets]

    def _hook(self, name: str, module: AuroraLinear, adapters: list[str]) -> Any:
        def collect(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["x"]
            if name not in self.layers:
                moments = self._moments_for(name, x, module.in_features)
                self.layers[name] = _Layer(name, module, adapters, moments)
            self._add(self.layers[name], x)

        return collect

    def _moments_for(self, name: str, x: Tensor, d_in: int) -> _SharedInput:
        """At a layer's first call: the moments of the layers called just before with this very tensor, or its own."""
        latest = self.latest
        if self.share_inputs and latest is not None and latest.last is not None and latest.last() is x:
            return latest
        return _SharedInput(name, torch.zeros(d_in, d_in, dtype=torch.float64, device=x.device))

    def _add(self, layer: _Layer, x: Tensor) -> None:
        vectors = self._vectors(x)
        wide = vectors.double()
        shared = self.latest = layer.shared
        if shared.leader == layer.name:
            shared.moment.addmm_(wide.T, wide)
            shared.vectors += len(wide)
            shared.last = weakref.ref(x)
        elif shared.last is None or shared.last() is not x:
            raise CalibrationError(_NOT_SHARED.format(layer.name, shared.leader))
        layer.vectors += len(wide)
        for adapter in layer.adapters:
            A = layer.module.aurora_A[adapter]
            z = nn.functional.linear(layer.module._cast_input_dtype(vectors, A.dtype), A)
            sigma = layer.module.sigma(adapter, z).double()  # (vectors, r), as the layer itself computes it
            if adapter not in layer.cross:
                layer.cross[adapter] = sigma.new_zeros(sigma.shape[1], wide.shape[1])
                layer.power[adapter] = sigma.new_zeros(())
            layer.cross[adapter].addmm_(sigma.T, wide)
            layer.power[adapter] += sigma.square().sum()

    def _vectors(self, x: Tensor) -> Tensor:
        """(n, d_in): the positions of x (..., d_in) that are not padding."""
        if self.mask is not None:
            if x.shape[:-1] == self.mask.shape:
                return x[self.mask]
            if x.dim() == 2 and x.shape[0] == self.mask.numel():
                return x[self.mask.reshape(-1)]
        return x.reshape(-1, x.shape[-1])


def _sum_over_processes(layers: list[_Layer]) -> None:
    """Sum everything over the processes of a distributed run, so that each solves the same system."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for shared in {id(layer.shared): layer.shared for layer in layers}.values():
        count = torch.tensor(shared.vectors, device=shared.moment.device)
        dist.all_reduce(count)
        dist.all_reduce(shared.moment)
        shared.vectors = int(count)
    for layer in layers:
        for total in (*layer.cross.values(), *layer.power.values()):
            dist.all_reduce(total)


def _solve(layer: _Layer, adapter: str, ridge: float) -> tuple[_Layer, str, Tensor, LayerCalibration]:
    """A_cal = C (S + lambda I)^-1 by Cholesky, with lambda raised tenfold until S + lambda I is positive definite."""
    n = layer.shared.vectors
    S, C, power = layer.shared.moment / n, layer.cross[adapter] / n, layer.power[adapter] / n
    scale = S.diagonal().mean()
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(S + ridge * scale * eye)
        if not failed or scale == 0:
            break
        ridge = max(10 * ridge, 1e-12)
    matrix = torch.cholesky_solve(C.T, factor).T if scale > 0 else torch.zeros_like(C)
    # E|sigma - Mx|^2 = E|sigma|^2 - 2 <M, C> + <M S, M>, from the sums: no second pass over the inputs
    error = power - 2 * (matrix * C).sum() + ((matrix @ S) * matrix).sum()
    explained = float(1 - error / power) if power > 0 else 1.0
    return layer, adapter, matrix, LayerCalibration(layer.name, adapter, n, explained, float(ridge * scale))
