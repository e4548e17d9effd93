"""`merge_quantized`: merge adapters into a quantised model so that its outputs, not its weights, are kept."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ..errors import MergeError
from ..ops.rounding import InputMoment, input_moment, lost_share, output_error
from ..tuner import AuroraLayer
from ..tuner.merging import OriginalWeight, parameter_like
from ..tuner.model import check_before_merge
from .calibrate import MAX_MEMORY
from .inputs import Batch, Passes, Reading, Runner, evaluated
from .merges import AdaptedLayer, input_moments, layers_with_adapters
from .predictions import EndToEndGap, compare, end_to_end_table
from .report import Report, first_table, share, worst_of
from .statistics import InputStatistics

if TYPE_CHECKING:
    from rich.table import Table

HELD_OUT = (8, 24)
"""These batches are not rounded by, and tell what the merge loses end to end."""
UNMERGED, WITHOUT, NEAREST, BY_INPUTS = "unmerged", "without adapter", "nearest", "by inputs"


@dataclass(frozen=True)
class LayerMerge:
    """What rounding has cost in one layer, as a share of what the adapter does there: 1 is as bad as leaving it out.

    These are root mean squares of a layer's output: they do not add up, and say nothing of what the model predicts.
    """

    layer: str
    """The layer's path in the plain model."""
    format: str
    """The format of the quantised weight."""
    nearest: float
    """sqrt(E|(W_n - W) x|^2 / E|dW x|^2), with W = W0 + dW, and W_n the quantised weight that is nearest to W."""
    by_inputs: float
    """What `nearest` is, for the weight that was chosen by the inputs."""


@dataclass(frozen=True)
class QuantizedMerge(Report):
    """The result of `merge_quantized`."""

    layers: tuple[LayerMerge, ...]
    end_to_end: tuple[EndToEndGap, ...]
    """The predictions of the model without the adapter, with the nearest quantised weights, and with those that were
    chosen, beside those of the unmerged one."""
    predictions: int
    """How many predictions were compared."""
    held_out: bool
    """Whether the inputs of these predictions were not rounded by."""
    vectors: int
    """Inputs that a layer saw, of the layer that saw the most."""
    passes: int
    """Passes over the batches."""
    seconds: float

    def worst(self, n: int = 3) -> tuple[LayerMerge, ...]:
        """The n layers that lose most.

        Raises:
            ValueError: n is no whole number of at least 1.
        """
        return worst_of(self.layers, lambda layer: layer.by_inputs, n)

    def lost(self, way: str = BY_INPUTS) -> float | None:
        """The share of the adapter's effect on the predictions that a merge loses: its KL divergence from the unmerged
        model, as a share of that of the model without the adapter. None where the model predicts no classes.

        Args:
            way: "by inputs" or "nearest".
        """
        kl = {end.form: end.kl for end in self.end_to_end}
        without, merged = kl.get(WITHOUT), kl.get(way)
        if without is None or merged is None:
            return None
        return merged / without if without > 0 else 0.0 if merged == 0 else math.inf

    @property
    def summary(self) -> str:
        """A line for people: what is lost end to end, or where no classes are predicted in the worst layer, with the
        nearest values beside."""
        if not self.layers:
            return "nothing: no layer with an adapter is quantised"
        ours, nearest = self.lost(BY_INPUTS), self.lost(NEAREST)
        if ours is None or nearest is None:
            (worst,) = self.worst(n=1)
            lost, beside = share(worst.by_inputs), share(worst.nearest)
            return f"up to {lost} (the nearest values: {beside}) of what the adapter adds to the output of a layer"
        which = "held-out predictions" if self.held_out else "predictions on the inputs that it was rounded by"
        if math.isinf(ours):  # the adapter changes nothing, and the base is rounded
            kl = {end.form: end.kl for end in self.end_to_end}
            return f"a KL divergence of {kl[BY_INPUTS]:.2g} (the nearest values: {kl[NEAREST]:.2g}) over {which}"
        return (
            f"{ours:.2%} of the adapter's effect on what the model predicts (the nearest values: {nearest:.2%}), by "
            f"the KL divergence of {self.predictions:,} {which}"
        )

    def tables(self) -> tuple[Table, ...]:
        """End to end, and layer by layer, those that lose most first, for a terminal. Needs rich."""
        what = "held out" if self.held_out else "rounded by"
        rows = [
            (layer.layer, [layer.format, share(layer.nearest), share(layer.by_inputs)])
            for layer in self.worst(n=len(self.layers))
        ]
        headings = ["layer", "format", "nearest", "by inputs"]
        title = "layers{}: root mean square error of the output, by that of the adapter's effect"
        layers = first_table(title, headings, rows, "layers that lose less", "they do not add up")
        ends = [end_to_end_table(f"inputs {what}", self.end_to_end, self.predictions)] if self.end_to_end else []
        return (*ends, layers)


def merge_quantized(
    model: nn.Module,
    batches: Any,
    *,
    damping: float = 1e-3,
    max_memory: float = MAX_MEMORY,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> QuantizedMerge:
    """Merge the active adapters into a quantised base model, rounding by the inputs that its layers see.

    `merge_adapter` adds the update to the dequantised weight and takes the nearest quantised one, which throws most of
    a small update away. Here each layer's W = W0 + dW is rounded to a W_q so that E|(W_q - W) x|^2 over its inputs x is
    small: see `ops.rounding`. The result is an ordinary quantised model: `merge_and_unload` takes the adapters out of
    it, and `unmerge_adapter` gives the original weights back bit for bit. Layers that are not quantised are merged as
    ever.

    Args:
        model: a `PeftModel` of any method that changes a weight (AuroRA in its mergeable form, LoRA and its variants,
            VeRA, OFT, (IA)^3, ...) on a base that bitsandbytes (8 bit, NF4, FP4) or torchao (int8, int4 kept as int8)
            has quantised; not merged.
        batches: as in `calibrate`: a few hundred inputs like those that the model will see, without labels. The
            eighth batch and the 24th are held out: what the merge loses end to end is measured on them. Of fewer than
            eight, all are rounded by, and it is measured on the first. Or `InputStatistics` that were kept earlier:
            nothing is measured end to end then.
        damping: relative to the mean of E[x^2]; see `ops.rounding.input_moment`.
        max_memory: as in `calibrate`.
        reading: as in `calibrate`: `tokenizer`, `text_columns`, `batch_size`, `examples`, `max_length`.
        progress: as in `calibrate`.

    Returns:
        What rounding has cost end to end and in each layer, which a warning says in a line too.

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
    every = layers_with_adapters(model, "merge_quantized")
    if all(layer.format is None for layer in every):
        raise MergeError(
            "No layer with an active adapter is quantised, so nothing needs merge_quantized: use merge_adapter() or "
            "merge_and_unload()."
        )
    data = parts(batches, progress, **reading)
    rounded, report = round_layers(model, every, data, "merge_quantized", damping, max_memory)
    merged: list[Any] = []
    try:
        for layer in every:
            if layer.format is not None:
                merged.append(layer.module)
                _merge(layer, rounded[layer.path])
        # where warnings are errors, the model is as before
        warnings.warn(f"Merging into quantised weights rounds them again: that costs {report.summary}.", stacklevel=2)
        for layer in every:  # those in float last, as PEFT takes back what it merged only up to rounding
            if layer.format is None:
                merged.append(layer.module)
                layer.module.merge()
    except BaseException:
        for module in filter(lambda one: one.merged, merged):
            module.unmerge()
        raise
    return report


# -------------------------------------------------------------------- rounding


def round_layers(
    model: nn.Module,
    every: Sequence[AdaptedLayer],
    data: Parts | InputStatistics,
    action: str,
    damping: float,
    max_memory: float,
) -> tuple[dict[str, RoundedLayer], QuantizedMerge]:
    """What each quantised layer is to hold, by path, and what that loses; changes nothing.

    Args:
        model: with active adapters.
        every: its layers with adapters; one without a format is merged into its float weight, and loses nothing.
        data: what to round by, and to measure on.
        action: what the user called, for errors.
        damping: see `merge_quantized`.
        max_memory: see `merge_quantized`.

    Raises:
        CalibrationError, MergeError, NotFiniteError, ValueError: see `merge_quantized`.
    """
    if not 0 < damping < math.inf:
        raise ValueError(f"damping={damping!r} is not allowed: it must be a finite number above 0.")
    start = time.perf_counter()
    layers = {layer.path: layer for layer in every if layer.format is not None}
    others = [layer for layer in every if layer.format is None]
    if aurora := [(layer.path, layer.module) for layer in every if isinstance(layer.module, AuroraLayer)]:
        check_before_merge(model, aurora)
    if isinstance(data, Parts):
        data.hold()
    with evaluated(model), Runner(model, action) as runner:
        rounded: dict[str, RoundedLayer] = {}
        moments = input_moments(layers, runner, data, max_memory) if isinstance(data, Parts) else data.moments(layers)
        for S, together in moments:
            inputs = input_moment(S, damping)  # layers that share an input share its factors
            rounded |= {layer.path: round_layer(layer, S, inputs, vectors) for layer, vectors in together}
            del S, inputs  # before the next ones are collected
        for path, layer in layers.items():
            if path not in rounded and layer.format.is_fresh:
                rounded[path] = unseen_layer(layer)
            elif path not in rounded:  # no input reached it, and its adapters add nothing
                rounded[path] = RoundedLayer(None, None, None, LayerMerge(path, layer.format.name, 0.0, 0.0), 0)
        passes, n = 0, 0
        ends: tuple[EndToEndGap, ...] = ()
        if isinstance(data, Parts):
            passes = data.passes
            ends, n = _end_to_end(runner, data, [(layer, rounded[path]) for path, layer in layers.items()], others)
    report = QuantizedMerge(
        tuple(rounded[path].report for path, layer in layers.items() if layer.names),
        ends,
        n,
        isinstance(data, Parts) and data.held_out,
        max((each.vectors for each in rounded.values()), default=0),
        passes,
        time.perf_counter() - start,
    )
    return rounded, report


class RoundedLayer(NamedTuple):
    """What a layer is to hold: the weight, or None for the one that it has; that of the nearest values, to be compared
    with; and the merged bias (d_out,), where the adapter changes it."""

    weight: Any
    nearest: Any
    bias: Tensor | None
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
    own = layer.format
    base, merged, bias = layer.weights()
    layer.check_change(merged - base, bias, S)
    bias = None if layer.bias_change(bias) is None else bias
    if torch.equal(merged, base) and not own.is_fresh:
        return RoundedLayer(None, None, bias, LayerMerge(layer.path, own.name, 0.0, 0.0), vectors)
    effect = output_error(merged - base, S)
    fitted = own.fitted(merged)
    nearest = own.pack(near := fitted.round(merged), fitted)
    codes, grid = own.chosen(merged, S, inputs)
    lost = (output_error(on.dequantised(at) - merged, S) for on, at in ((fitted, near), (grid, codes)))
    report = LayerMerge(layer.path, own.name, *(lost_share(error, effect) for error in lost))
    return RoundedLayer(own.pack(codes, grid), nearest, bias, report, vectors)


def unseen_layer(layer: AdaptedLayer) -> RoundedLayer:
    """What a layer is to hold whose inputs are not known: the nearest values."""
    S = torch.eye(layer.base.in_features, device=layer.base.weight.device)
    return round_layer(layer, S, input_moment(S), 0)


def _merge(layer: AdaptedLayer, rounded: RoundedLayer) -> None:
    """Let the base layer hold the weight and the bias, and keep the originals for `unmerge`."""
    module, base = layer.module, layer.module.get_base_layer()
    original = OriginalWeight(base, layer.format.backend, shared=False), base.bias
    put(layer, rounded.weight, rounded.bias)
    if isinstance(module, AuroraLayer):
        module.original = original[0]
    else:
        module.originals, module.unmerge = original, MethodType(_unmerge, module)
    module.merged_adapters.extend(layer.names)


def put(layer: AdaptedLayer, weight: Any, bias: Tensor | None) -> None:
    base = layer.base
    if weight is not None:
        layer.format.put(weight)
    if bias is not None:
        base.bias = parameter_like(base.bias, bias.to(base.bias.dtype))


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


# -------------------------------------------------------------------- end to end


class Parts(Passes):
    """Passes over the batches that weights are rounded by, and one over those that are held out."""

    held_out = False

    def one_pass(self) -> Iterator[Batch]:
        for i, batch in enumerate(super().one_pass(), 1):
            if i in HELD_OUT:
                self.held_out = True
            else:
                yield batch

    def measured(self) -> Iterator[Batch]:
        """The held-out batches, or the first where there are none."""
        for i, batch in enumerate(super().one_pass(), 1):
            if i in HELD_OUT or not self.held_out:
                yield batch
            if not self.held_out or i == HELD_OUT[-1]:
                return


def parts(batches: Any, progress: bool, **reading: Unpack[Reading]) -> Parts | InputStatistics:
    """What to round by: batches, or what was kept of them."""
    if isinstance(batches, InputStatistics):
        return batches
    return Parts(batches, "reading inputs" if progress else "", **reading)


def _end_to_end(
    runner: Runner,
    data: Parts,
    layers: Sequence[tuple[AdaptedLayer, RoundedLayer]],
    others: Sequence[AdaptedLayer],
) -> tuple[tuple[EndToEndGap, ...], int]:
    """What the model predicts without its adapters, with the nearest weights and with the chosen ones, beside what it
    predicts unmerged; changes nothing."""
    adapted = [*(layer for layer, _ in layers), *others]
    variants: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
        UNMERGED: nullcontext,
        WITHOUT: lambda: _switched_off(adapted),
        NEAREST: lambda: _holding([(layer, one.nearest, one.bias) for layer, one in layers]),
        BY_INPUTS: lambda: _holding([(layer, one.weight, one.bias) for layer, one in layers]),
    }
    try:
        ends, n = compare(runner, data.measured(), variants)
    except TypeError:  # the model gives nothing that is known as predictions
        return (), 0
    return ends[1:], n


@contextmanager
def _switched_off(layers: Sequence[AdaptedLayer]) -> Iterator[None]:
    """While the block runs, layers compute without their adapters, as those of PEFT do that are merged."""
    layers = [layer for layer in layers if layer.names]
    try:
        for layer in layers:
            layer.module.merged_adapters.extend(layer.names)
        yield
    finally:
        for layer in layers:
            layer.module.merged_adapters.clear()


@contextmanager
def _holding(held: Sequence[tuple[AdaptedLayer, Any, Tensor | None]]) -> Iterator[None]:
    """While the block runs, base layers hold these weights and biases, and compute without adapters."""
    bases = [layer.base for layer, _, _ in held]
    earlier = [(layer.format.held(), base.bias) for (layer, _, _), base in zip(held, bases, strict=True)]
    with _switched_off([layer for layer, _, _ in held]):
        try:
            for one in held:
                put(*one)
            yield
        finally:
            for base, (layer, _, _), (weight, bias) in zip(bases, held, earlier, strict=True):
                layer.format.put(weight)
                base.bias = bias
