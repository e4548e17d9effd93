"""`merge_quantized`: merge adapters into a quantised model so that its outputs, not its weights, are kept."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import MergeError
from ..files import NOT_FINITE
from ..ops.rounding import InputMoment, input_moment, lost_share, output_error
from ..tuner import AuroraLayer
from ..tuner.merging import OriginalWeight, parameter_like
from ..tuner.model import check_before_merge
from ..values import is_number, require
from .adapted import AdaptedLayer, held_format, input_moments
from .calibrate import MAX_MEMORY
from .inputs import Passes, Runner, as_batches, evaluated
from .merged_weight import adapters_of, bias_change, check_change, layers_with_adapters, trains_bias
from .reports import Report, worst_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerMerge:
    """What rounding has cost in one layer, as a share of what the adapter does there: 1 is as bad as leaving it out."""

    layer: str
    """The layer's path in the plain model."""
    format: str
    """The format of the quantised weight, as PEFT names it."""
    nearest: float
    """sqrt(E|(W_n - W) x|^2 / E|dW x|^2), with W = W0 + dW, and W_n the quantised weight that is nearest to W."""
    by_inputs: float
    """What `nearest` is, for the weight that was chosen by the inputs."""


@dataclass(frozen=True)
class QuantizedMerge(Report):
    """The result of `merge_quantized`."""

    layers: tuple[LayerMerge, ...]
    vectors: int
    """Inputs that a layer saw, of the layer that saw the most."""
    passes: int
    """Passes over the batches."""
    seconds: float

    def worst(self, *, n: int = 3) -> tuple[LayerMerge, ...]:
        """The n layers that lose most.

        Raises:
            ValueError: n is no whole number of at least 1.
        """
        return worst_of(self.layers, lambda layer: layer.by_inputs, n)

    @property
    def summary(self) -> str:
        """A line for people: the least and the most that a layer loses, beside what the nearest values would, and how
        many layers have a loss that is not finite."""
        after, before = ([getattr(layer, way) for layer in self.layers] for way in ("by_inputs", "nearest"))
        broken = sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in zip(after, before, strict=True))
        return (
            f"{_range_of(after)} on the inputs given (the nearest values: {_range_of(before)}), "
            f"over {len(self.layers)} layers" + (f", {broken} of them {NOT_FINITE}" if broken else "")
        )

    def tables(self) -> tuple[Table, ...]:
        """Layer by layer, those that lose most first, for a terminal. Needs rich."""
        from .tables import first_table, share

        rows = [
            (layer.layer, [layer.format, share(layer.nearest), share(layer.by_inputs)])
            for layer in self.worst(n=len(self.layers))
        ]
        headings = ["layer", "format", "nearest", "by inputs"]
        title = "layers{}: error, as a share of the adapter's effect"
        return (first_table(title, headings, rows, "layers that lose less"),)


def _range_of(losses: Sequence[float]) -> str:
    """The least and the most of those that are finite."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return f"{min(finite):.0%} to {max(finite):.0%}" if finite else NOT_FINITE


def merge_quantized(
    model: nn.Module,
    batches: Any,
    *,
    damping: float = 1e-3,
    max_memory: float = MAX_MEMORY,
    tokenizer: Any = None,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> QuantizedMerge:
    """Merge the active adapters into a quantised base model, rounding by the inputs that its layers see.

    `merge_adapter` adds the update to the dequantised weight and takes the nearest quantised one, which throws most of
    a small update away. Here each layer's W = W0 + dW is rounded to a W_q so that E|(W_q - W) x|^2 over its inputs x is
    small: see `ops.rounding`. The result is an ordinary quantised model: `merge_and_unload` takes the adapters out of
    it, and `unmerge_adapter` gives the original weights back bit for bit. Layers that are not quantised are merged as
    ever.

    Args:
        model: a `PeftModel` of any method that changes a weight (AuroRA in its mergeable form, LoRA and its variants,
            VeRA, OFT, ...) on a base that bitsandbytes (8 bit, NF4, FP4) or torchao (int8, int4 kept as int8) has
            quantised; not merged.
        batches: as in `calibrate`: a few hundred inputs like those that the model will see, without labels.
        damping: relative to the mean of E[x^2]; see `ops.rounding.input_moment`.
        max_memory: as in `calibrate`.
        tokenizer: as in `calibrate`.
        text_columns: as in `calibrate`.
        batch_size: as in `calibrate`.
        examples: as in `calibrate`.
        max_length: as in `calibrate`.
        progress: as in `calibrate`.

    Returns:
        What rounding has cost in each layer, which a warning says in a line too.

    Raises:
        MergeError: nothing is quantised; a layer's format or method does not allow it. The model is as before then,
            and after any other error.
        AlreadyMergedError: an adapter is merged already.
        CalibrationError: no batches; a trained layer that no input reached, or one that was not finite; adapters that
            are switched off.
        NotFiniteError: a merged weight that is not finite.
        FormError, NotCalibratedError, StaleCalibrationError: of an AuroRA adapter; see `AuroraModel.merge_adapter`.
        TypeError: as `calibrate`.
        ValueError: an argument that is not allowed.
    """
    require(is_number(damping) and damping > 0, "damping", damping, "a finite number above 0")
    start = time.perf_counter()
    source = as_batches(
        batches, tokenizer, text_columns=text_columns, batch_size=batch_size, examples=examples, max_length=max_length
    )
    data = Passes(source, "reading inputs" if progress else "")
    layers, others = quantized_layers(model)
    every = {path: layer.module for path, layer in layers.items()} | others
    check_before_merge(model, [(path, module) for path, module in every.items() if isinstance(module, AuroraLayer)])
    for path, module in others.items():
        for name in adapters_of(module):
            trains_bias(path, module, name)  # PEFT's own merge refuses only when it has changed the weight
    with evaluated(model), Runner(model, "merge_quantized") as runner:
        rounded: dict[str, RoundedLayer] = {}
        for S, together in input_moments(layers, runner, data, max_memory):
            inputs = input_moment(S, damping)  # layers that share an input share its factors
            rounded |= {layer.path: round_layer(layer, S, inputs, vectors) for layer, vectors in together}
            del S, inputs  # before the next ones are collected
    for path, layer in layers.items():
        if path not in rounded:  # no input reached it, and its adapters add nothing
            assert layer.format is not None
            kind = layer.format.backend.backend_name
            rounded[path] = RoundedLayer(None, None, LayerMerge(path, kind, 0.0, 0.0), 0)
    merged: list[Any] = []
    try:
        for path, layer in layers.items():
            merged.append(layer.module)
            hold_rounded(layer, rounded[path])
        report = QuantizedMerge(
            tuple(rounded[path].report for path in layers),
            max(each.vectors for each in rounded.values()),
            data.passes,
            time.perf_counter() - start,
        )
        _warn(report)  # where warnings are errors, the model is as before
        for module in others.values():  # last, as PEFT takes back what it merged only up to rounding
            merged.append(module)
            module.merge()
    except BaseException:
        for module in filter(lambda one: one.merged, merged):
            module.unmerge()
        raise
    return report


@dataclass(frozen=True)
class RoundedLayer:
    """The quantised weight that a layer is to hold."""

    weight: nn.Parameter | None
    """The weight to be held; None is the one that it holds already."""
    bias: Tensor | None
    """The merged bias, (d_out,), where the adapter changes it."""
    report: LayerMerge
    vectors: int


def round_layer(layer: AdaptedLayer, S: Tensor, inputs: InputMoment, vectors: int) -> RoundedLayer:
    """The quantised weight that a layer's merged one is rounded to by its inputs; changes nothing.

    Args:
        layer: that is adapted.
        S: E[x x^T] of its inputs, (d_in, d_in).
        inputs: `input_moment` of S.
        vectors: how many inputs S was taken over.
    """
    assert layer.format is not None
    base, merged, bias = layer.weights()
    check_change(layer.path, layer.module, layer.names, merged - base, bias, S)
    bias = None if bias_change(layer.module, bias) is None else bias
    kind = layer.format.backend.backend_name
    if torch.equal(merged, base):
        return RoundedLayer(None, bias, LayerMerge(layer.path, kind, 0.0, 0.0), vectors)
    own = layer.format.fitted(merged)
    codes, grid = layer.format.chosen(merged, S, inputs)
    effect = output_error(merged - base, S)
    lost = (output_error(on.dequantised(at) - merged, S) for on, at in ((own, own.round(merged)), (grid, codes)))
    nearest, by_inputs = (lost_share(error, effect) for error in lost)
    report = LayerMerge(layer.path, kind, nearest, by_inputs)
    return RoundedLayer(layer.format.stored(codes, grid), bias, report, vectors)


def hold_rounded(layer: AdaptedLayer, rounded: RoundedLayer) -> None:
    """Let the base layer hold the weight and the bias, and keep the originals for `unmerge`."""
    assert layer.format is not None
    module, base = layer.module, layer.module.get_base_layer()
    original = OriginalWeight(base, layer.format.backend, shared=False)
    if rounded.weight is not None:
        layer.format.put(rounded.weight)
    if isinstance(module, AuroraLayer):
        module.keep(original, rounded.report.by_inputs)
    else:
        module.originals = original, base.bias
        if rounded.bias is not None:
            base.bias = parameter_like(base.bias, rounded.bias.to(base.bias.dtype))
        module.unmerge = MethodType(_unmerge, module)
    module.merged_adapters.extend(layer.names)


def _unmerge(layer: Any) -> None:
    """In place of the layer's own `unmerge`, which would subtract the update and round once more."""
    weight, bias = layer.originals
    weight.restore(layer)
    base = layer.get_base_layer()
    if bias is not None:
        bias.data = bias.data.to(base.bias.device)
    base.bias = bias
    del layer.originals, layer.unmerge
    layer.merged_adapters.clear()


def quantized_layers(model: nn.Module) -> tuple[dict[str, AdaptedLayer], dict[str, Any]]:
    """The quantised layers to merge, and those that are not quantised, by path.

    Raises:
        MergeError, AlreadyMergedError, CalibrationError: see `merge_quantized`.
    """
    quantised: dict[str, AdaptedLayer] = {}
    others: dict[str, Any] = {}
    for path, module, names in layers_with_adapters(model, "merge_quantized"):
        if (held := held_format(path, module, model, "merge_quantized")) is None:
            others[path] = module
        else:
            quantised[path] = AdaptedLayer(path, module, names, held)
    if not quantised:
        raise MergeError(
            "No layer with an active adapter is quantised, so nothing needs merge_quantized: use merge_adapter() or "
            "merge_and_unload()."
        )
    return quantised, others


def _warn(report: QuantizedMerge) -> None:
    warnings.warn(
        "Merging into quantised weights rounds them again: of what the adapter does in a layer, that costs "
        f"{report.summary}.",
        stacklevel=3,
    )
