"""What the merges of an adapter lose: in each layer, and end to end; each is tried on copies of single layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..finite import nan_as_infinite
from ..ops.rounding import Grid, input_moment, lost_share, output_error
from ..temporary_attributes import called_as
from ..tuner.linear import linear_shape
from .adapted import OWN_FORMATS, AdaptedLayer, input_moments
from .calibrate import MAX_MEMORY
from .formats import name_of
from .inputs import Passes, Runner
from .merged_weight import check_change
from .predictions import EndToEndGap, Metric, Variants, compare

FLOAT32_BYTES = 4


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


@dataclass(frozen=True)
class Merge:
    """A kind of merge.

    Args:
        name: of the merge.
        dtype: of the merged weight; None is the one that the layer has.
        quantization: its format instead; see `formats`. A layer that stays as it is has the dtype.
        by_inputs: not the nearest values, but those that keep the layer's outputs on given inputs.
    """

    name: str
    dtype: torch.dtype | None = None
    quantization: str | None = None
    by_inputs: bool = False


class MergeSums:
    """Tries merges of some layers.

    Args:
        layers: all adapted layers of a model.
        quantizations: the formats to merge into, beside the base's own format or dtype and bfloat16.
        max_memory: bytes of moments, or of merged weights, that are held at once.
    """

    def __init__(
        self, layers: Sequence[AdaptedLayer], quantizations: Sequence[str], max_memory: float = MAX_MEMORY
    ) -> None:
        self.max_memory = max_memory
        self.layers = {layer.path: layer for layer in layers}
        self.merges = _merges(layers, quantizations)
        self._chosen: dict[tuple[str, str], tuple[Tensor, Grid]] = {}  # by merge and layer: codes, and their grid
        self._lost: dict[str, list[LayerLoss]] = {merge.name: [] for merge in self.merges}

    def measure(self, runner: Runner, data: Passes, rounding: Passes | None) -> None:
        """Choose weights by the inputs of `rounding`, and take each layer's losses over `data`."""
        if rounding is not None and any(merge.by_inputs for merge in self.merges):
            for S, together in input_moments(self.layers, runner, rounding, self.max_memory):
                self._choose(S, [layer for layer, _ in together])
        for S, together in input_moments(self.layers, runner, data, self.max_memory):
            layers = [layer for layer, _ in together]
            if rounding is None:
                self._choose(S, layers)
            for layer in layers:
                self._measure(S, layer)

    def _choose(self, S: Tensor, layers: Sequence[AdaptedLayer]) -> None:
        merges = [merge for merge in self.merges if merge.by_inputs]
        if not merges:
            return
        inputs = input_moment(S)
        for layer in layers:
            held, exact, _ = layer.weights()
            for merge in merges:
                assert merge.quantization is not None
                own = layer.format_named(merge.quantization, exact)
                if own is None or (own is layer.format and torch.equal(held, exact)):
                    continue  # nothing to round, or nothing to merge: the weight stays what it is
                codes, grid = own.chosen(exact, S, inputs)
                self._chosen[merge.name, layer.path] = codes.to("cpu", torch.uint8), grid  # one for each weight

    def _measure(self, S: Tensor, layer: AdaptedLayer) -> None:
        held, exact, bias = layer.weights()
        check_change(layer.path, layer.module, layer.names, exact - held, bias, S)
        effect = output_error(exact - held, S)
        for merge in self.merges:
            error = output_error(self._weight(merge, layer, held, exact) - exact, S)
            self._lost[merge.name].append(LayerLoss(layer.path, lost_share(error, effect)))

    def _weight(self, merge: Merge, layer: AdaptedLayer, held: Tensor, exact: Tensor) -> Tensor:
        """W_q, (d_out, d_in) in float32."""
        own = None if merge.quantization is None else layer.format_named(merge.quantization, exact)
        if own is None:
            return layer.in_dtype(merge.dtype, exact)
        if own is layer.format and torch.equal(held, exact):
            return held
        if merge.by_inputs and (chosen := self._chosen.get((merge.name, layer.path))):  # not where no input came
            codes, grid = chosen
            return grid.dequantised(codes.to(exact.device).int())
        grid = own.fitted(exact)
        return grid.dequantised(grid.round(exact))

    def layers_of(self, merge: str) -> tuple[LayerLoss, ...]:
        """What a merge loses in each layer, the worst first."""
        return tuple(sorted(self._lost[merge], key=lambda loss: nan_as_infinite(loss.relative_error), reverse=True))

    def compare(
        self, runner: Runner, data: Passes, reference: Variants, metric: Metric | None
    ) -> tuple[tuple[EndToEndGap, ...], int]:
        """The predictions of each merge beside those of the reference, which comes first.

        As many merges at once as the bound on memory holds, but at least one, with a pass over the inputs for each
        such group.
        """
        entry = sum(FLOAT32_BYTES * d_out * d_in for d_out, d_in in map(_shape, self.layers.values()))
        at_once = max(1, int(self.max_memory) // entry)
        found: dict[str, EndToEndGap] = {}
        n = 0
        for start in range(0, len(self.merges), at_once):
            variants = dict(reference) | {m.name: self._variant(m) for m in self.merges[start : start + at_once]}
            ends, n = compare(runner, data.one_pass(), variants, metric, perplexity=True)
            del variants  # before the next ones are made
            found |= {end.form: end for end in ends}
        return tuple(found.values()), n

    def _variant(self, merge: Merge) -> Callable[[], AbstractContextManager[None]]:
        """Turns the model into one whose adapted layers have this merge's weights."""
        plain = {}
        for path, layer in self.layers.items():
            held, exact, bias = layer.weights()
            plain[path] = _Plain(self._weight(merge, layer, held, exact).to(layer.dtype), bias)
        forwards = [(layer.module, plain[path]) for path, layer in self.layers.items()]
        return lambda: called_as(forwards)


@dataclass(frozen=True)
class _Plain:
    """The forward pass of a linear layer, with a weight (d_out, d_in)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return functional.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)


def _shape(layer: AdaptedLayer) -> tuple[int, int]:
    return linear_shape(layer.module.get_base_layer())


def _merges(layers: Sequence[AdaptedLayer], quantizations: Sequence[str]) -> list[Merge]:
    """The base's own format or dtype, then bfloat16, then the formats that were asked for."""
    formats = list(dict.fromkeys(name_of(layer.format) for layer in layers if layer.format is not None))
    own = {layer.dtype for layer in layers}
    merges = []
    if not formats:
        merges = [Merge(_dtype_name(*own) if len(own) == 1 else "own dtypes")]
    if own != {torch.bfloat16} or formats:
        merges.append(Merge("bfloat16", torch.bfloat16))
    for name in dict.fromkeys([*(formats if len(formats) < 2 else [OWN_FORMATS]), *quantizations]):
        merges += [Merge(f"{name} nearest", None, name), Merge(f"{name} by inputs", None, name, by_inputs=True)]
    return merges


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
