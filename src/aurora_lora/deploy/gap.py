"""`merge_gap`: what a merge loses, by layer and end to end, for AuroRA's forms and for the adapters of any method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import NotCalibratedError
from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName
from ..tuner import AuroraLayer, aurora_layers, check_calibrated, set_form
from ..tuner.adapters import active_layers
from ..tuner.config import is_list_of, is_name
from ..values import one_of, require, short
from .adapted import AdaptedLayer, adapted_layers
from .calibrate import MAX_MEMORY, alone
from .formats import QUANTIZATIONS, check_quantization
from .inputs import Passes, Runner, as_batches, check_unmerged, dynamic_adapters, evaluated, in_form, trained_state
from .layer_gaps import FormSums, LayerGap
from .merge_losses import LayerLoss, MergeLoss, MergeSums
from .predictions import EndToEndGap, Metric, compare
from .reports import Report, worst_of

if TYPE_CHECKING:
    from rich.table import Table

UNMERGED = "unmerged"
"""The reference of a method that has one form only."""


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

    def worst(self, form: str | None = None, *, n: int = 3) -> tuple[LayerGap | LayerLoss, ...]:
        """The n layers that lose most.

        Args:
            form: a form (`"static"`, `"calibrated"`) or a merge (`"bfloat16"`, `"nf4 by inputs"`); the last form if
                None, or where there are no forms the last merge.
            n: how many.

        Raises:
            ValueError: no such form or merge was measured, or n is no whole number of at least 1.
        """
        entries: dict[str, list[LayerGap | LayerLoss]] = {merge.merge: list(merge.layers) for merge in self.merges}
        for entry in self.layers:
            entries.setdefault(entry.form, []).append(entry)
        if form is None and entries:
            form = self.layers[-1].form if self.layers else self.merges[-1].merge
        require(form in entries, "form", form, f"one of those measured: {', '.join(map(repr, entries)) or 'none'}")
        return worst_of(entries[str(form)], lambda entry: entry.relative_error, n)

    def tables(self) -> tuple[Table, ...]:
        """End to end, and layer by layer for forms and for merges, for a terminal. Needs rich."""
        from .gap_tables import end_to_end_table, layer_table, merge_table

        tables = [end_to_end_table(self.end_to_end, self.merges, self.predictions)]
        if self.layers or not self.merges:
            last = [entry for entry in self.layers if entry.form == self.layers[-1].form]
            tables.append(layer_table(self.layers, worst_of(last, lambda entry: entry.relative_error, 3)))
        if self.merges:
            tables.append(merge_table(self.merges))
        return tuple(tables)


@alone()
def merge_gap(
    model: nn.Module,
    batches: Any,
    *,
    merges: bool | None = None,
    quantizations: str | Sequence[str] = (),
    rounding_batches: Any = None,
    metric: Metric | None = None,
    max_memory: float = MAX_MEMORY,
    tokenizer: Any = None,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
    progress: bool = False,
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
            of -100, or of pixels the one that the model's config leaves out of the loss, is not scored, and its example
            counts as a prediction all the same. With merges, a causal language model without labels is scored on its
            inputs, and its perplexity is given.
        merges: whether to measure what rounding the merged weights loses. None is yes where `quantizations` are given,
            and of methods other than AuroRA, which have nothing else to measure.
        quantizations: to merge into, one or several of "nf4", "fp4" and "int8", as bitsandbytes has them; as there, the
            output layer of a language model stays in its dtype, and so does what a quantised base has in float.
        rounding_batches: the inputs by which merges into a quantised format round, as `batches`; `batches` themselves
            if None, and then what they lose is what they lose on inputs that they were made for.
        metric: `metric(predictions, labels)`, of all batches, which are then kept in memory: other figures, numbers by
            their names.
        max_memory: as in `merge_quantized`, for merges.
        tokenizer: as in `calibrate`.
        text_columns: as in `calibrate`.
        batch_size: as in `calibrate`.
        examples: as in `calibrate`; of `rounding_batches` as many.
        max_length: as in `calibrate`.
        progress: as in `calibrate`.

    Raises:
        CalibrationError: no batches, a layer that no input reached, a trained adapter that gives NaN or infinity, or
            adapters that are switched off.
        AlreadyMergedError: an adapter is merged.
        MergeError: an adapter of a layer that is not linear, or one that is no change of the weight.
        NotFiniteError: a merged weight that is not finite.
        UserError: bitsandbytes is missing.
        TypeError: a model whose output has neither logits nor hidden states; a `metric` that is no function or gives no
            numbers; as `calibrate`.
        ValueError: no active adapter that changes a weight, or an argument that is not allowed or not used, such as an
            unknown quantisation, or `rounding_batches` where no merge rounds by inputs.
        FormError: all of AuroRA was trained in the static form, which merges exactly, and no merges are asked for; or
            they are and it evaluates in the dynamic form.
        NotCalibratedError, StaleCalibrationError: merges are asked for, and there is no calibrated matrix to merge.
    """

    def as_passes(given: Any, doing: str) -> Passes:
        source = as_batches(
            given, tokenizer, text_columns=text_columns, batch_size=batch_size, examples=examples, max_length=max_length
        )
        return Passes(source, doing if progress else "")

    names = _checked(quantizations)
    if metric is not None and not callable(metric):
        raise TypeError(f"metric={short(metric)} is not allowed: it must be a function of (predictions, labels).")
    layers = _layers_to_merge(model, merges, names)
    if not layers and not any(active_layers(model)):
        raise ValueError("The model has no active adapter that changes a weight: merge_gap has nothing to measure.")
    if rounding_batches is not None and not _rounds_by_inputs(layers, names):
        raise ValueError("rounding_batches are not used: no merge into a quantised format is measured.")
    data = as_passes(batches, "measuring")
    if layers:
        rounding = None if rounding_batches is None else as_passes(rounding_batches, "reading inputs to round by")
        found = _gap_of_merges(model, layers, names, data, rounding, metric, max_memory)
    else:
        found = _gap_of_forms(model, data, metric)
    if metric is not None and not any(end.metric for end in found.end_to_end):
        warnings.warn("metric was never called: no batch has labels, one for each prediction.", stacklevel=3)
    return found


def rounds_by_inputs(model: nn.Module, merges: bool | None = None, quantizations: str | Sequence[str] = ()) -> bool:
    """Whether `merge_gap` with these arguments tries merges that round by inputs, and so can use `rounding_batches`."""
    names = _checked(quantizations)
    return _rounds_by_inputs(_layers_to_merge(model, merges, names), names)


def _rounds_by_inputs(layers: Sequence[AdaptedLayer], quantizations: Sequence[str]) -> bool:
    return bool(layers) and (bool(quantizations) or any(layer.format is not None for layer in layers))


def _checked(quantizations: str | Sequence[str]) -> tuple[str, ...]:
    """The names of formats, each of which can be merged into."""
    names = [quantizations] if isinstance(quantizations, str) else quantizations
    if not is_list_of(is_name, names):
        allowed = ", ".join(map(repr, QUANTIZATIONS))
        raise TypeError(f"quantizations={short(quantizations)} is not allowed: it must be one of {allowed}, or a list.")
    for name in names:
        one_of("quantizations", name, QUANTIZATIONS)
        check_quantization(name)
    return tuple(names)


def _layers_to_merge(model: nn.Module, merges: bool | None, quantizations: Sequence[str]) -> list[AdaptedLayer]:
    """The layers whose merges are measured; none where it is about AuroRA's forms alone."""
    if merges is not None and not isinstance(merges, bool):
        raise TypeError(f"merges={short(merges)} is not allowed: it must be True, False or None.")
    of_aurora = any(aurora_layers(model))
    if merges is False:
        if quantizations:
            raise ValueError("merges=False is not allowed with quantizations, which are merges.")
        if not of_aurora:
            raise ValueError("merges=False is not allowed: of methods other than AuroRA, merges alone are measured.")
    wanted = bool(quantizations) or not of_aurora if merges is None else merges
    return adapted_layers(model) if wanted else []


def _gap_of_merges(
    model: nn.Module,
    layers: Sequence[AdaptedLayer],
    quantizations: Sequence[str],
    data: Passes,
    rounding: Passes | None,
    metric: Metric | None,
    max_memory: float,
) -> MergeGap:
    for layer in layers:
        for name in layer.names if isinstance(layer.module, AuroraLayer) else ():
            layer.module.get_factors(name)  # raises what is no merge, before the inputs are read
    data.hold()
    forms = _gap_of_forms(model, data, metric, perplexity=True) if _is_dynamic(layers) else None
    sums = MergeSums(layers, quantizations, max_memory)
    with evaluated(model), Runner(model, "merge_gap") as runner:
        sums.measure(runner, data, rounding)
        reference: tuple[str, Callable[[], AbstractContextManager[Any]]] = (UNMERGED, nullcontext)
        if forms is not None:
            reference = (DYNAMIC, lambda: in_form(model, DYNAMIC))
        ends, n = sums.compare(runner, data, dict([reference]), metric)
    first, *others = ends
    losses = tuple(MergeLoss(end.form, sums.layers_of(end.form), end) for end in others)
    return MergeGap((), (first,), n, losses) if forms is None else replace(forms, merges=losses)


def _is_dynamic(layers: Sequence[AdaptedLayer]) -> bool:
    """Whether AuroRA adapters were trained in the dynamic form: then there are forms to compare."""
    aurora = [(layer.module, name) for layer in layers if isinstance(layer.module, AuroraLayer) for name in layer.names]
    return any(module.aurora_config[name].train_form == DYNAMIC for module, name in aurora)


def _gap_of_forms(model: nn.Module, data: Passes, metric: Metric | None, *, perplexity: bool = False) -> MergeGap:
    check_unmerged(model, "merge_gap")
    forms = _forms(model)
    with trained_state(model), Runner(model, "merge_gap") as runner:
        sums = FormSums(model, runner, [form for form in forms if form != DYNAMIC])
        variants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            form: partial(in_form, model, form) for form in forms
        }
        ends, n = compare(runner, data.one_pass(), variants, metric, watch=sums.watching, perplexity=perplexity)
    return MergeGap(sums.result(), ends, n)


def _forms(model: nn.Module) -> tuple[FormName, ...]:
    """The forms that can be compared; calibrated only where every active adapter that needs one has a fresh matrix."""
    if not (names := dynamic_adapters(model)):
        set_form(model, DYNAMIC)  # refuses adapters that were trained static
    try:
        check_calibrated(model, names)
    except NotCalibratedError:
        return (DYNAMIC, STATIC)
    return (DYNAMIC, STATIC, CALIBRATED)
