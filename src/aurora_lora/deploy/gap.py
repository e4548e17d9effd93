"""`merge_gap`: what a merge loses, by layer and end to end, for AuroRA's forms and for the adapters of any method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, NotCalibratedError
from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName
from ..tuner import AuroraLayer, active_layers, aurora_layers, check_calibrated, set_form
from ..values import nan_as_infinite
from .calibrate import MAX_MEMORY, ROUNDING, alone, row_pieces, to_float64
from .formats import check_quantization
from .inputs import (
    Passes,
    Reading,
    Runner,
    check_unmerged,
    dynamic_adapters,
    evaluated,
    in_form,
    input_geometry,
    trained_state,
    watched_inputs,
)
from .merges import AdaptedLayer, MergeLoss, MergeSums, linear_layers
from .predictions import EndToEndGap, Metric, compare, end_to_end_table
from .report import Report, first_table, share, short_names, shown, table

if TYPE_CHECKING:
    from rich.table import Table

UNMERGED = "unmerged"
"""The reference of a method that has one form only."""


@dataclass(frozen=True)
class LayerGap:
    """One adapter of one layer, in one linear form, over the inputs x that reach it in the trained model."""

    layer: str
    """The layer's path in the plain model."""
    adapter: str
    form: str
    relative_error: float
    """|B sigma(Ax) - B M x| / |B sigma(Ax)|, both norms over all inputs: 0 is exact, 1 is as bad as leaving it out."""
    explained_variance: float
    """1 - E|B sigma(Ax) - B M x|^2 / E|B sigma(Ax) - its mean|^2; negative where the mean alone would do better.

    Where B sigma(Ax) is the same for all inputs, but for rounding (one vector, equal ones), there is no variance to
    explain: 1 if the form is exact, else NaN.
    """


@dataclass(frozen=True)
class MergeGap(Report):
    """The report of `merge_gap`. Where a form gives NaN or infinity, so are its figures: never 0 or 1."""

    layers: tuple[LayerGap, ...]
    end_to_end: tuple[EndToEndGap, ...]
    """One entry for each form, the dynamic one first; of other methods, the unmerged model."""
    predictions: int
    """How many predictions (examples, or token positions) were compared."""
    merges: tuple[MergeLoss, ...] = ()
    """What each kind of merge loses, beside the first entry of `end_to_end`."""

    def tables(self) -> tuple[Table, ...]:
        """End to end, and layer by layer for forms and for merges, for a terminal. Needs rich."""
        ends = (*self.end_to_end, *(merge.end_to_end for merge in self.merges))
        tables = [end_to_end_table("merge" if self.merges else "form", ends, self.predictions)]
        if self.layers or not self.merges:
            tables.append(self._layer_table())
        if self.merges:
            tables.append(self._merge_table())
        return tuple(tables)

    def _layer_table(self) -> Table:
        """One row for each layer."""
        forms = list(dict.fromkeys(entry.form for entry in self.layers))
        names, where = short_names([entry.layer for entry in self.layers])
        rows: dict[tuple[str, str], list[str]] = {}
        for entry in self.layers:
            cells = rows.setdefault((entry.layer, entry.adapter), [names[entry.layer]])
            # a dash where the adapter's effect does not vary
            no_variance = math.isfinite(entry.relative_error) and math.isnan(entry.explained_variance)
            explained = None if no_variance else entry.explained_variance
            cells += [shown(entry.relative_error, ".1%"), shown(explained, ".1%")]
        headings = ["layer", *(heading for form in forms for heading in (f"{form} err", "expl."))]
        return table(f"layers{where}: relative error, explained variance", headings, list(rows.values()))

    def _merge_table(self) -> Table:
        """One row for each of the layers that lose most in some merge, the worst first."""
        lost: dict[str, dict[str, float]] = {}
        for merge in self.merges:
            for entry in merge.layers:
                lost.setdefault(entry.layer, {})[merge.merge] = entry.relative_error
        order = sorted(lost, key=lambda layer: max(map(nan_as_infinite, lost[layer].values())), reverse=True)
        rows = [(layer, [share(value) for value in lost[layer].values()]) for layer in order]
        headings = ["layer", *(merge.merge for merge in self.merges)]
        return first_table(
            "layers{}: error, as a share of the adapter's effect", headings, rows, "layers that lose less"
        )


@alone()
def merge_gap(
    model: nn.Module,
    batches: Any,
    *,
    merges: bool | None = False,
    quantizations: str | Sequence[str] = (),
    rounding_batches: Any = None,
    metric: Metric | None = None,
    max_memory: float = MAX_MEMORY,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> MergeGap:
    """Measure what a merge would lose, by layer and end to end, beside the model as it was trained.

    Of AuroRA: the static and, if calibrated, the calibrated form beside the trained one. With `merges`, as always of
    other methods of PEFT: the merge in the base's own dtype, in bfloat16, and in each of the quantised formats, with
    the nearest values and with those that `merge_quantized` chooses.

    A merge is measured on the adapted linear layers alone: their merged weight is rounded, in a copy; all else, and the
    precision of the computation, is as in the model. Only of LLM.int8(), whose layers round their inputs to 8 bits too,
    a merged layer takes them as they are, and what that changes is part of the end-to-end figures. Changes nothing:
    weights, forms, training mode and random state are as before. Use inputs that neither the training nor `calibrate`
    saw. Each of several processes has its own inputs, to measure on and to round by.

    Args:
        model: a model with active adapters, not merged: of AuroRA, trained in the dynamic form, or a `PeftModel` of any
            method that changes a weight. The base may be quantised; its own format is then one of those measured.
        batches: as in `calibrate`. Where a batch has `labels`, one for each prediction, the metric of each form is
            reported: mean negative log-likelihood and accuracy (of the next token, for a causal language model), the
            mean squared error of a regression, or the mean binary cross-entropy where several labels can hold. A class
            of -100 is not scored, and its example counts as a prediction all the same. With merges, a causal language
            model without labels is scored on its inputs, and its perplexity is given.
        merges: whether to measure what rounding the merged weights loses. That is always so where `quantizations` are
            given, and of methods other than AuroRA, which have nothing else to measure.
        quantizations: to merge into, one or several of "nf4", "fp4" and "int8", as bitsandbytes has them; as there, the
            output layer of a language model stays in its dtype, and so does what a quantised base has in float.
        rounding_batches: the inputs by which merges into a quantised format round, as `batches`; `batches` themselves
            if None, and then what they lose is what they lose on inputs that they were made for.
        metric: `metric(predictions, labels)`, of all batches, which are then kept in memory: other figures, numbers by
            their names.
        max_memory: as in `merge_quantized`, for merges.
        reading: as in `calibrate`: `tokenizer`, `text_columns`, `batch_size`, `examples`, `max_length`.
        progress: as in `calibrate`, for `rounding_batches` too.

    Raises:
        CalibrationError: no batches, a layer that no input reached, an adapter that gives NaN or infinity, or that is
            switched off.
        AlreadyMergedError: an adapter is merged.
        MergeError, NotFiniteError: an adapter of a layer that is not linear, one that is no change of the weight, or
            whose merged weight is not finite.
        UserError: an unknown quantisation, or bitsandbytes is missing.
        TypeError: no predictions in what the model gives; as `calibrate`.
        ValueError: no active adapter that changes a weight, or `rounding_batches` where no merge rounds by inputs.
        FormError, NotCalibratedError, StaleCalibrationError: AuroRA has no forms to compare, or none to merge.
    """
    names, layers, rounds = _merges_to_measure(model, merges, quantizations)
    if not layers and not any(active_layers(model)):
        raise ValueError("The model has no active adapter that changes a weight: merge_gap has nothing to measure.")
    if rounding_batches is not None and not rounds:
        raise ValueError("rounding_batches are not used: no merge into a quantised format is measured.")
    data = Passes(batches, "measuring" if progress else "", **reading)
    if layers:
        doing = "reading inputs to round by" if progress else ""
        rounding = None if rounding_batches is None else Passes(rounding_batches, doing, **reading)
        found = _gap_of_merges(model, layers, names, data, rounding, metric, max_memory)
    else:
        found = _gap_of_forms(model, data, metric)
    if metric is not None and not any(end.metric for end in found.end_to_end):
        warnings.warn("metric was never called: no batch has labels, one for each prediction.", stacklevel=3)
    return found


def rounds_by_inputs(model: nn.Module, merges: bool | None = False, quantizations: str | Sequence[str] = ()) -> bool:
    """Whether `merge_gap` with these arguments tries merges that round by inputs, and so can use `rounding_batches`."""
    return _merges_to_measure(model, merges, quantizations)[2]


def _merges_to_measure(
    model: nn.Module, merges: bool | None, quantizations: str | Sequence[str]
) -> tuple[Sequence[str], list[AdaptedLayer], bool]:
    """The formats to merge into, the layers whose merges are measured (none where it is about AuroRA's forms alone),
    and whether some merge rounds by inputs."""
    names = (quantizations,) if isinstance(quantizations, str) else tuple(quantizations)
    for name in names:
        check_quantization(name)
    layers = linear_layers(model) if merges or names or not any(aurora_layers(model)) else []
    return names, layers, bool(layers) and (bool(names) or any(layer.format is not None for layer in layers))


def _gap_of_merges(
    model: nn.Module,
    layers: Sequence[AdaptedLayer],
    quantizations: Sequence[str],
    data: Passes,
    rounding: Passes | None,
    metric: Metric | None,
    max_memory: float,
) -> MergeGap:
    aurora = [(layer.module, name) for layer in layers if isinstance(layer.module, AuroraLayer) for name in layer.names]
    for module, name in aurora:
        module.get_factors(name)  # raises what is no merge, before the inputs are read
    data.hold()
    has_forms = any(module.aurora_config[name].train_form == DYNAMIC for module, name in aurora)
    forms = _gap_of_forms(model, data, metric, perplexity=True) if has_forms else None
    reference = (lambda: in_form(model, DYNAMIC)) if has_forms else nullcontext
    sums = MergeSums(layers, quantizations, max_memory)
    with evaluated(model), Runner(model, "merge_gap") as runner:
        sums.measure(runner, data, rounding)
        first, n, losses = sums.compare(runner, data, {DYNAMIC if has_forms else UNMERGED: reference}, metric)
    return replace(forms, merges=losses) if forms else MergeGap((), (first,), n, losses)


def _gap_of_forms(model: nn.Module, data: Passes, metric: Metric | None, *, perplexity: bool = False) -> MergeGap:
    check_unmerged(model, "merge_gap")
    if not (names := dynamic_adapters(model)):
        set_form(model, DYNAMIC)  # refuses adapters that were trained static
    forms: tuple[FormName, ...] = (DYNAMIC, STATIC, CALIBRATED)
    try:
        check_calibrated(model, names)
    except NotCalibratedError:
        forms = (DYNAMIC, STATIC)
    with trained_state(model), Runner(model, "merge_gap") as runner:
        sums = [
            _LayerSums(runner, path, layer, name, forms[1:])
            for path, layer, name in active_layers(model)
            # an embedding merges exactly, and so does an adapter that was trained static
            if layer.has_forms and layer.aurora_config[name].train_form != STATIC
        ]
        variants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            form: partial(in_form, model, form) for form in forms
        }
        watch = partial(watched_inputs, [(one.layer, one.see) for one in sums])
        ends, n = compare(runner, data.one_pass(), variants, metric, watch=watch, perplexity=perplexity)
        if missed := [one.path for one in sums if not one.n and one.gram.any()]:
            raise runner.not_reached(list(dict.fromkeys(missed)))
    return MergeGap(tuple(gap for one in sums if one.n for gap in one.result()), ends, n)


class _LayerSums:
    """What each linear form of one adapter of one layer loses, summed over the inputs that reach the layer.

    |B v|^2 = v^T (B^T B) v is taken in the rank space.

    Of a convolution with groups, each group has its own rows of B, which are all that its vectors meet.
    """

    def __init__(self, runner: Runner, path: str, layer: AuroraLayer, name: str, forms: Sequence[FormName]) -> None:
        self.runner, self.path, self.layer, self.name = runner, path, layer, name
        factors = {form: layer.get_factors(name, form) for form in forms}
        self.matrices = {form: to_float64(lora_A) for form, (lora_A, _) in factors.items()}
        B = to_float64(factors[forms[0]][1])  # s B: the scale drops out of every ratio
        base: Any = layer.get_base_layer()
        rows = B.view(base.groups if input_geometry(layer) else 1, -1, B.shape[1])
        self.gram = rows.transpose(1, 2) @ rows  # (groups, r, r)
        self.n = 0
        self.power = 0.0
        self.total = B.new_zeros(len(rows), B.shape[1])
        self.errors = dict.fromkeys(forms, 0.0)

    def _square(self, v: Tensor, groups: Tensor) -> float:
        """|B v|^2, summed over v (n, r), each of its group (n,)."""
        if len(self.gram) == 1:
            return float(((v @ self.gram[0]) * v).sum())
        columns = zip(self.gram.unbind(2), v.unbind(1), strict=True)  # (n, r, r) would be a lot of memory
        return float((sum(column[groups] * values[:, None] for column, values in columns) * v).sum())

    def see(self, x: Tensor) -> None:
        """Take in the input of the layer."""
        for vectors, groups in self.runner.pieces(self.layer, x):
            x = vectors.to(self.layer.aurora_A[self.name].weight.dtype)  # what the layer computes with
            sigma = to_float64(self.layer.sigma(self.name, self.layer.hidden_values(self.name, x)))  # (n, r)
            self.n += len(sigma)
            of = torch.zeros_like(sigma[:, 0], dtype=torch.int64) if groups is None else groups.to(sigma.device)
            self.power += self._square(sigma, of)
            self.total.index_add_(0, of, sigma)
            for rows in row_pieces(len(x), max(x.shape[1], sigma.shape[1])):
                inputs = to_float64(x[rows])
                for form, M in self.matrices.items():
                    self.errors[form] += self._square(sigma[rows] - inputs @ M.T, of[rows])

    def result(self) -> list[LayerGap]:
        """The gap in each form.

        Raises:
            CalibrationError: the adapter gives no finite numbers.
        """
        if not math.isfinite(self.power):
            raise CalibrationError(
                f"The adapter of {self.path} gives no finite numbers: is the model or a batch broken?"
            )
        n = self.n / len(self.total)  # of each group
        groups = torch.arange(len(self.total), device=self.total.device)
        variance = self.power - n * self._square(self.total / n, groups)
        rounding = ROUNDING**2 * self.power
        found = []
        for form, error in self.errors.items():
            exact = 1.0 if error <= rounding else math.nan
            explained = 1 - _ratio(error, variance) if variance > rounding else exact
            found.append(LayerGap(self.path, self.name, form, _ratio(error, self.power) ** 0.5, explained))
        return found


def _ratio(error: float, power: float) -> float:
    """Non-negative up to rounding; an adapter that does nothing (B = 0) loses nothing. NaN of what is not finite."""
    if not math.isfinite(error) or not math.isfinite(power):
        return math.nan
    return max(error, 0.0) / power if power > 0 else 0.0
