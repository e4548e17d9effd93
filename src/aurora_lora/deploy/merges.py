"""The merges of adapters of any method into linear layers: the merged weights, and what they lose, tried in copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..errors import MergeError, NotFiniteError, one_line
from ..ops.rounding import Grid, input_moment, lost_share, output_error
from ..ops.update import without_autocast
from ..temporary_attributes import called_as
from ..tuner import AuroraLayer
from ..tuner.linear import linear_shape
from ..tuner.merging import check_takes_merge, is_packed
from ..tuner.peft_names import (
    BaseTunerLayer,
    TrainableTokensLayer,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from ..values import nan_as_infinite
from .calibrate import Target
from .calibrate import input_moments as moments_of
from .formats import Format, format_for, format_of
from .inputs import Passes, Runner, check_in_use, output_embeddings, plain_model
from .predictions import EndToEndGap, Metric, Variants, compare

# -------------------------------------------------------------------- adapted layers


def adapters_of(layer: Any) -> list[str]:
    """The active adapters that this layer has, in the order in which they are merged."""
    held = {name for part in getattr(layer, "adapter_layer_names", ()) for name in getattr(layer, part, ())}
    return [name for name in getattr(layer, "active_adapters", ()) if name in held]


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer with active adapters of any method, or a linear one with none; merges are for linear ones.

    Args:
        path: in the plain model.
        module: PEFT's layer, or a linear one.
        format: the `Format` of its weight if that is quantised, else None.
        stays: it is not quantised, and no merge quantises it.
    """

    path: str
    module: Any
    format: Any
    stays: bool = False

    @property
    def names(self) -> list[str]:
        """Its active adapters."""
        return adapters_of(self.module)

    @property
    def base(self) -> Any:
        """The layer below its adapters."""
        return self.module.get_base_layer() if isinstance(self.module, BaseTunerLayer) else self.module

    @property
    def dtype(self) -> torch.dtype:
        """What the layer computes in; float32 of a quantised one that does not say."""
        found: torch.dtype | None
        found = self.base.weight.dtype if self.format is None else self.format.dtype
        return found or torch.float32

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """W0, W = W0 + dW, (d_out, d_in), and the merged bias (d_out,) if there is one; in float32.

        Raises:
            MergeError, NotFiniteError: see `merge_gap`.
        """
        held = self._held().float()
        merged, bias = self._merged(held) if self.names else (held, None)
        for what, value in (("weight", merged), ("bias", bias)):
            if value is not None and not bool(value.isfinite().all()):
                raise NotFiniteError(f"{self.path}: the merged {what} is not finite; the adapter seems to be broken.")
        return self._upright(held), self._upright(merged), bias

    def in_dtype(self, dtype: torch.dtype | None, exact: Tensor) -> Tensor:
        """The weight (d_out, d_in) that a merge into a base of this dtype gives, rounded as the layer does."""
        dtype = dtype or self.dtype
        if isinstance(self.module, AuroraLayer) or dtype == torch.float32:
            return exact.to(dtype).float()
        return self._upright(self._merged(self._held().to(dtype))[0].float())

    def is_idle(self) -> bool:
        """Whether its adapters add nothing."""
        held, merged, bias = self.weights()
        return torch.equal(held, merged) and self.bias_change(bias) is None

    def bias_change(self, bias: Tensor | None) -> Tensor | None:
        """What a merge adds to the bias, (d_out,) in float32; None where it stays what it is."""
        if bias is None:
            return None
        change = bias - self.base.bias.float()
        return change if change.any() else None

    def check_change(self, update: Tensor, bias: Tensor | None, S: Tensor) -> None:
        """Raise a MergeError unless dW x + db is what the adapters add to the output, for a few x like its inputs.

        Args:
            update: dW, (d_out, d_in).
            bias: the merged one, b + db, (d_out,).
            S: E[x x^T], (d_in, d_in).
        """
        base = self.base
        noise = torch.randn(8, len(S), generator=torch.Generator().manual_seed(0), device="cpu").to(S.device)
        dtype = base.weight.dtype
        x = (noise * S.diagonal().sqrt()).to(dtype if dtype.is_floating_point else torch.float32)
        plain = base(x)
        added = (self.module(x) - plain).float()
        expected = x.float() @ update.T
        if (change := self.bias_change(bias)) is not None:
            expected += change
        if not (added - expected).norm() <= 0.05 * expected.norm() + 0.02 * plain.float().norm():
            packed = (
                " bitsandbytes packed its 4-bit weight for this CPU, which PEFT then reads wrong: load the model again "
                "and set support_avx512bf16_for_cpu = False on its layers before they are called."
            )
            raise MergeError(
                f"{self.path}: what its adapters ({', '.join(self.names)}) compute is no change of the weight and the "
                f"bias, so they cannot be merged.{packed * is_packed(base)}"
            )

    def format_named(self, name: str, exact: Tensor) -> Format | None:
        """Its own format if that is the one, or a new one for the merged weight; None where that is not quantised."""
        if self.stays:
            return None
        is_own = self.format is not None and name == self.format.name
        own: Format = self.format if is_own else format_for(name, exact)
        return own

    def _held(self) -> Tensor:
        weight: Tensor = self.base.weight.data if self.format is None else self.format.dense()
        return weight

    def _upright(self, weight: Tensor) -> Tensor:
        return (weight.T if isinstance(self.base, Conv1D) else weight).contiguous()

    def _merged(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight with its adapters merged, as the layer would do it, and the bias in float32; changes nothing."""
        layer, names = self.module, self.names
        dense, method = _dense(self.base, weight), type(layer).__module__.split(".")[-2]
        if type(layer).merge is BaseTunerLayer.merge:
            raise MergeError(f"{self.path}: PEFT merges no {method} into a layer of this kind.")
        # whether the layer's own merge is none into a weight, but dequantises and quantises by itself
        is_stored = self.format is not None and self.format.backend is not None
        requantises = is_stored and layer.quantization_backend is None
        variants = None  # of LoRA without biases: DoRA and its like
        if isinstance(layer, LoraLayer) and not any(layer.lora_bias.get(name) for name in names):
            variants = [layer.lora_variant[name] for name in names if name in layer.lora_variant]
        with torch.no_grad(), without_autocast(weight):
            if requantises and method == "hira":  # which tells B A alone, and computes with the stored weight
                for name in names:
                    dense.weight.data = dense.weight.data + weight * layer.get_delta_weight(name).to(weight)
            elif isinstance(layer, AuroraLayer) or (requantises and variants == []):
                for name in names:
                    dense.weight.data = dense.weight.data + layer.get_delta_weight(name).to(weight)
            elif requantises and variants and len(names) == 1:
                dense.weight.data = variants[0].merge_safe(_twin(layer, dense), names[0], weight)
            elif requantises:
                _merge_by_forward(self.path, _twin(layer, dense), dense)
            else:
                try:
                    _twin(layer, dense).merge(adapter_names=names)
                except NotImplementedError as error:  # of Lily, activated LoRA and others
                    what = f"PEFT cannot merge its adapters of {method}: {one_line(error)}"
                    raise MergeError(f"{self.path}: {what}") from error
        return dense.weight.data.to(weight.dtype), None if dense.bias is None else dense.bias.data.float()


def _dense(base: Any, weight: Tensor) -> Any:
    """An unquantised layer with this weight, as the base layer holds it, and a copy of the bias."""
    dense: Any = nn.Linear(1, 1, bias=base.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.clone(), requires_grad=False)
    dense.in_features, dense.out_features = weight.shape[1], weight.shape[0]
    if base.bias is not None:
        dense.bias = nn.Parameter(base.bias.to(weight, copy=True), requires_grad=False)
    return dense


def _twin(layer: Any, base: Any) -> Any:
    """A copy of a layer of PEFT, with the same adapters, on another base: what it merges changes the layer nowhere."""
    twin = copy.copy(layer)
    vars(twin).update({name: copy.copy(value) for name, value in vars(layer).items() if isinstance(value, dict | list)})
    twin.base_layer, twin.merged_adapters, twin.quantization_backend = base, [], None
    return twin


def _merge_by_forward(path: str, twin: Any, dense: Any) -> None:
    """Put into the base of a `_twin` what the layer computes: the images of 0 and of the unit vectors tell."""
    forward = type(twin).forward
    eye = torch.eye(dense.in_features, device=dense.weight.device)
    whole, bias = forward(twin, eye[:1] * 0)[0], dense.bias
    dense.bias = None
    shift = forward(twin, eye[:1] * 0)
    weight = (forward(twin, eye) - shift).T.contiguous()
    if bias is None and whole.any():
        raise MergeError(f"{path}: the bias that its adapters add cannot be merged: the layer has none.")
    dense.weight.data, dense.bias = weight, bias
    if bias is not None:
        bias.data = whole


def layers_with_adapters(model: nn.Module, action: str) -> list[AdaptedLayer]:
    """Each layer of any method with active adapters.

    Raises:
        AlreadyMergedError, CalibrationError: see `check_in_use`.
        MergeError: its weight is in a format whose codes cannot be read and written, or see `check_takes_merge`.
        NotImplementedError: see `check_takes_merge`.
    """
    found = []
    plain = plain_model(model)
    for path, module in plain.named_modules():
        path = ".".join(part for part in path.split(".") if part != "_orig_mod")  # of a part that is compiled
        if not isinstance(module, BaseTunerLayer) or not adapters_of(module):
            continue
        check_in_use(path, module, action)
        base: Any = module.get_base_layer()
        backend = resolve_quantization_backend(base, **get_quantization_kwargs(plain))
        held = None if backend is None else format_of(base, backend)
        if backend is None:
            try:
                check_takes_merge(base, None)
            except (MergeError, NotImplementedError) as error:
                raise type(error)(f"{path}: {error}") from error
        elif held is None:
            kind = type(getattr(base, "weight", base)).__name__
            raise MergeError(
                f"{path}: {action} does not know how {backend.backend_name} quantised its weight ({kind}). Serve the "
                "adapter beside it, or merge into the unquantised base model."
            )
        found.append(AdaptedLayer(path, module, held))
    return found


def input_moments(
    layers: Mapping[str, AdaptedLayer], runner: Runner, data: Passes, max_memory: float
) -> Iterator[tuple[Tensor, list[tuple[AdaptedLayer, int]]]]:
    """E[x x^T] (d_in, d_in), with the layers that have these inputs, each with how many it saw.
    Layers that no input reached, and whose adapters add nothing, do not come.

    Args:
        layers: by path.
        runner: of the model.
        data: what to run it on.
        max_memory: see `calibrate.input_moments`.
    """
    targets = [Target(path, layer.module, is_idle=layer.is_idle) for path, layer in layers.items()]
    for together in moments_of(runner, targets, data, max_memory):
        yield together[0].mean(), [(layers[each.target.name], each.vectors) for each in together]


# -------------------------------------------------------------------- merges that are tried


@dataclass(frozen=True)
class LayerLoss:
    """What a merge loses in one layer, as a share of what the adapter does there: 1 is as bad as leaving it out."""

    layer: str
    """The layer's path in the plain model."""
    relative_error: float
    """sqrt(E|(W_q - W) x|^2 / E|dW x|^2), with W = W0 + dW, and W_q the weight that the merge gives."""


@dataclass(frozen=True)
class MergeLoss:
    """What one kind of merge loses."""

    merge: str
    """The dtype of the merged weights, or their format and how they were rounded to it: nearest, or by inputs."""
    layers: tuple[LayerLoss, ...]
    """The worst first."""
    end_to_end: EndToEndGap


class Merge(NamedTuple):
    """A way to merge: into a dtype, the layer's own if None, or a format, to the nearest values or by inputs."""

    name: str
    dtype: torch.dtype | None = None
    quantization: str | None = None
    by_inputs: bool = False


def linear_layers(model: nn.Module) -> list[AdaptedLayer]:
    """The layers of a model whose merges are measured; not the rows of embeddings that are trained as such
    (`trainable_token_indices`), of which a merge rounds nothing.

    Raises:
        MergeError: one is not linear; see `layers_with_adapters`.
    """
    every = layers_with_adapters(model, "merge_gap")
    layers = [layer for layer in every if not isinstance(layer.module, TrainableTokensLayer)]
    for layer in layers:
        base = layer.module.get_base_layer()
        if layer.format is None and not isinstance(base, nn.Linear | Conv1D):
            kind = type(base).__name__
            raise MergeError(f"{layer.path}: merge_gap measures merges of linear layers, not of {kind}.")
    plain = plain_model(model)
    output = output_embeddings(plain)
    # where Transformers quantises a model it leaves the output layer as it is, and others that the user names
    partly = getattr(plain, "is_quantized", False) or any(layer.format is not None for layer in layers)
    return [replace(one, stays=one.format is None and (partly or one.module is output)) for one in layers]


class MergeSums:
    """Tries merges of some layers.

    Args:
        layers: all adapted layers of a model.
        quantizations: the formats to merge into, beside the base's own format or dtype and bfloat16.
        max_memory: bytes of moments, or of merged weights, that are held at once.
    """

    def __init__(self, layers: Sequence[AdaptedLayer], quantizations: Sequence[str], max_memory: float) -> None:
        self.max_memory = max_memory
        self.layers = {layer.path: layer for layer in layers}
        self.merges = _merges(layers, quantizations)
        self._chosen: dict[tuple[str, str], tuple[Tensor, Grid]] = {}  # by merge and layer: codes, and their grid
        self._lost: dict[str, list[LayerLoss]] = {merge.name: [] for merge in self.merges}

    def measure(self, runner: Runner, data: Passes, rounding: Passes | None) -> None:
        """Choose weights by the inputs of `rounding`, or of `data`, and take each layer's losses over `data`."""
        by_inputs = [merge for merge in self.merges if merge.by_inputs]
        if rounding is not None and by_inputs:
            for S, together in input_moments(self.layers, runner, rounding, self.max_memory):
                self._choose(S, [layer for layer, _ in together], by_inputs)
        for S, together in input_moments(self.layers, runner, data, self.max_memory):
            layers = [layer for layer, _ in together]
            if rounding is None and by_inputs:
                self._choose(S, layers, by_inputs)
            for layer in layers:
                held, exact, bias = layer.weights()
                layer.check_change(exact - held, bias, S)
                effect = output_error(exact - held, S)
                for merge in self.merges:
                    error = output_error(self._weight(merge, layer, held, exact) - exact, S)
                    self._lost[merge.name].append(LayerLoss(layer.path, lost_share(error, effect)))

    def _choose(self, S: Tensor, layers: Sequence[AdaptedLayer], merges: Sequence[Merge]) -> None:
        inputs = input_moment(S)
        for layer in layers:
            held, exact, _ = layer.weights()
            for merge in merges:
                own = layer.format_named(str(merge.quantization), exact)
                if own is not None and not (own is layer.format and torch.equal(held, exact)):
                    codes, grid = own.chosen(exact, S, inputs)
                    self._chosen[merge.name, layer.path] = codes.to("cpu", torch.uint8), grid  # one for each weight

    def _weight(self, merge: Merge, layer: AdaptedLayer, held: Tensor, exact: Tensor) -> Tensor:
        """W_q, (d_out, d_in) in float32."""
        own = None if merge.quantization is None else layer.format_named(merge.quantization, exact)
        if own is None:
            return layer.in_dtype(merge.dtype, exact)
        if own is layer.format and torch.equal(held, exact):
            return held  # nothing to merge: the weight stays what it is
        if merge.by_inputs and (chosen := self._chosen.get((merge.name, layer.path))):  # not where no input came
            codes, grid = chosen
            return grid.dequantised(codes.to(exact.device).int())
        grid = own.fitted(exact)
        return grid.dequantised(grid.round(exact))

    def compare(
        self, runner: Runner, data: Passes, reference: Variants, metric: Metric | None
    ) -> tuple[EndToEndGap, int, tuple[MergeLoss, ...]]:
        """The predictions of the reference, how many there are, and what each merge loses beside it.

        As many merges at once as the bound on memory holds, but at least one, with a pass over the inputs for each
        such group.
        """
        entries = sum(math.prod(linear_shape(layer.module.get_base_layer())) for layer in self.layers.values())
        at_once = max(1, int(self.max_memory) // (4 * entries))
        found: dict[str, EndToEndGap] = {}
        n = 0
        for start in range(0, len(self.merges), at_once):
            variants = dict(reference) | {m.name: self._variant(m) for m in self.merges[start : start + at_once]}
            ends, n = compare(runner, data.one_pass(), variants, metric, perplexity=True)
            del variants  # before the next ones are made
            found |= {end.form: end for end in ends}
        first, *others = found.values()
        return first, n, tuple(MergeLoss(end.form, self._worst_first(end.form), end) for end in others)

    def _worst_first(self, merge: str) -> tuple[LayerLoss, ...]:
        return tuple(sorted(self._lost[merge], key=lambda loss: nan_as_infinite(loss.relative_error), reverse=True))

    def _variant(self, merge: Merge) -> Callable[[], AbstractContextManager[None]]:
        """Turns the model into one whose adapted layers have this merge's weights."""
        forwards = []
        for layer in self.layers.values():
            held, exact, bias = layer.weights()
            weight = self._weight(merge, layer, held, exact).to(layer.dtype)
            forwards.append((layer.module, _plain_forward(weight, None if bias is None else bias.to(weight))))
        return lambda: called_as(forwards)


def _plain_forward(weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    """The forward pass of a linear layer."""
    return lambda x, *_, **__: functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _merges(layers: Sequence[AdaptedLayer], quantizations: Sequence[str]) -> list[Merge]:
    """The base's own format or dtype, then bfloat16, then the formats that were asked for."""
    formats = list(dict.fromkeys(layer.format.name for layer in layers if layer.format is not None))
    own = {layer.dtype for layer in layers}
    merges = []
    if not formats:
        merges = [Merge(str(*own).removeprefix("torch.") if len(own) == 1 else "own dtypes")]
    if own != {torch.bfloat16} or formats:
        merges.append(Merge("bfloat16", torch.bfloat16))
    for name in dict.fromkeys([*formats, *quantizations]):
        merges += [Merge(f"{name} nearest", None, name), Merge(f"{name} by inputs", None, name, by_inputs=True)]
    return merges
