"""`merge_gap`: what a merge loses, by layer and end to end, for AuroRA's forms and for the adapters of any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import NotCalibratedError
from ..finite import nan_as_infinite
from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName
from ..tuner import AuroraLayer, aurora_layers, check_calibrated, set_form
from ..tuner.adapters import active_layers
from ..values import one_of
from .adapted import AdaptedLayer, adapted_layers
from .batches import as_batches
from .calibrate import check_unmerged, trained_state
from .formats import QUANTIZATIONS, check_quantization
from .inputs import Runner
from .layer_gaps import FormSums, LayerGap
from .merge_losses import MergeLoss, MergeSums
from .passes import Passes, evaluated
from .predictions import EndToEndGap, Metric, compare
from .processes import alone

if TYPE_CHECKING:
    from rich.table import Table

UNMERGED = "unmerged"
"""The reference of a method that has one form only."""


@dataclass(frozen=True)
class MergeGap:
    """The report of `merge_gap`. Where a form gives NaN or infinity, so are its figures: never 0 or 1."""

    layers: tuple[LayerGap, ...]
    end_to_end: tuple[EndToEndGap, ...]
    """One entry for each form, the dynamic one first; of other methods, the unmerged model."""
    predictions: int
    """How many predictions (examples, or token positions) were compared."""
    merges: tuple[MergeLoss, ...] = ()
    """What each kind of merge loses, beside the first entry of `end_to_end`."""

    def worst(self, form: str, n: int = 3) -> tuple[LayerGap, ...]:
        """The n layers that lose most in a form."""
        entries = [entry for entry in self.layers if entry.form == form]
        return tuple(sorted(entries, key=lambda entry: nan_as_infinite(entry.relative_error), reverse=True)[:n])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def tables(self) -> tuple[Table, ...]:
        """End to end, and layer by layer for forms and for merges, for a terminal. Needs rich."""
        from .gap_tables import end_to_end_table, layer_table, merge_table

        tables = [end_to_end_table(self.end_to_end, self.merges, self.predictions)]
        if self.layers or not self.merges:
            tables.append(layer_table(self.layers, self.worst(self.layers[-1].form) if self.layers else ()))
        if self.merges:
            tables.append(merge_table(self.merges))
        return tuple(tables)

    def __str__(self) -> str:
        """The tables, 80 characters wide; all fields, where rich is not installed."""
        try:
            from .gap_tables import as_text
        except ModuleNotFoundError:
            return repr(self)
        return as_text(self.tables())

    def _repr_html_(self) -> str | None:
        """The tables for a notebook."""
        try:
            from .gap_tables import as_html
        except ModuleNotFoundError:
            return None
        return as_html(self.tables())


@alone()
def merge_gap(
    model: nn.Module,
    batches: Any,
    *,
    quantizations: Sequence[str] | str | None = None,
    calibration: Any = None,
    metric: Metric | None = None,
    tokenizer: Any = None,
    text_columns: str | Sequence[str] = "text",
    batch_size: int = 32,
    examples: int | None = None,
    max_length: int | None = None,
) -> MergeGap:
    """Measure what a merge would lose, by layer and end to end, beside the model as it was trained.

    Of AuroRA: the static and, if calibrated, the calibrated form beside the trained one. Of every method of PEFT, and
    of AuroRA where `quantizations` is given: the merge in the base's own dtype, in bfloat16, and in each of the
    quantised formats, with the nearest values and with those that `merge_quantized` chooses.

    A merge is measured on the adapted linear layers alone: their merged weight is rounded, in a copy; all else, and the
    precision of the computation, is as in the model. Changes nothing: weights, forms, training mode and random state
    are as before. Use inputs that neither the training nor `calibrate` saw. Each of several processes has its own
    inputs, to measure on and to round by.

    Args:
        model: a model with active adapters, not merged: of AuroRA, trained in the dynamic form, or a `PeftModel` of any
            method that changes a weight. The base may be quantised; its own format is then one of those measured.
        batches: as in `calibrate`. Where a batch has `labels`, one for each prediction, the metric of each form is
            reported: mean negative log-likelihood and accuracy (of the next token, for a causal language model), the
            mean squared error of a regression, or the mean binary cross-entropy where several labels can hold. A class
            of -100, or of pixels the one that the model's config leaves out of the loss, is not scored, and its example
            counts as a prediction all the same. With merges, a causal language model without labels is scored on its
            inputs, and its perplexity is given.
        quantizations: of "nf4", "fp4" and "int8", as bitsandbytes has them; as there, the output layer of a language
            model stays in its dtype, and so does what a quantised base has in float. None measures no merge of AuroRA
            adapters.
        calibration: the inputs by which such merges round, as `batches`; `batches` themselves if None, and
            then what they lose is what they lose on inputs that they were made for.
        metric: computes other figures from the (predictions, labels) of all batches, which are then kept in memory.
        tokenizer: as in `calibrate`.
        text_columns: as in `calibrate`.
        batch_size: as in `calibrate`.
        examples: as in `calibrate`; of `calibration` as many.
        max_length: as in `calibrate`.

    Raises:
        CalibrationError: no batches, a layer that no input reached, a trained adapter that gives NaN or infinity, or
            adapters that are switched off.
        AlreadyMergedError: an adapter is merged.
        MergeError: an adapter of a layer that is not linear, or one that is no change of the weight.
        NotFiniteError: a merged weight that is not finite.
        UserError: bitsandbytes is missing.
        TypeError: a model whose output has neither logits nor hidden states.
        ValueError: no active adapter that changes a weight, or an argument that is not allowed, such as an unknown
            quantisation.
        FormError: AuroRA was trained in the static form, which merges exactly, and `quantizations` is None; or merges
            are asked for and it evaluates in the dynamic form.
        NotCalibratedError, StaleCalibrationError: merges are asked for, and there is no calibrated matrix to merge.
    """

    def as_passes(given: Any) -> Passes:
        source = as_batches(
            given, tokenizer, text_columns=text_columns, batch_size=batch_size, examples=examples, max_length=max_length
        )
        return Passes(source)

    quantizations = (quantizations,) if isinstance(quantizations, str) else quantizations
    for name in quantizations or ():
        one_of("quantizations", name, QUANTIZATIONS)
        check_quantization(name)
    data = as_passes(batches)
    layers = [] if quantizations is None and any(aurora_layers(model)) else adapted_layers(model)
    if not layers:
        if not any(active_layers(model)):
            raise ValueError("The model has no active adapter that changes a weight: merge_gap has nothing to measure.")
        return _gap_of_forms(model, data, metric)
    data.hold()
    rounding = None if calibration is None else as_passes(calibration)
    forms = _gap_of_forms(model, data, metric, perplexity=True) if _is_dynamic(layers) else None
    sums = MergeSums(layers, quantizations or ())
    with evaluated(model), Runner(model, "merge_gap") as runner:
        sums.measure(runner, data, rounding)
        reference: tuple[str, Callable[[], AbstractContextManager[Any]]] = (UNMERGED, nullcontext)
        if forms is not None:
            reference = (DYNAMIC, lambda: set_form(model, DYNAMIC))
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
            form: partial(set_form, model, form) for form in forms
        }
        ends, n = compare(runner, data.one_pass(), variants, metric, watch=sums.watching, perplexity=perplexity)
    return MergeGap(sums.result(), ends, n)


def _forms(model: nn.Module) -> tuple[FormName, ...]:
    """The forms that can be compared; calibrated only where every active adapter has a fresh matrix."""
    with set_form(model, DYNAMIC):  # refuses adapters that were trained static
        pass
    try:
        check_calibrated(model)
    except NotCalibratedError:
        return (DYNAMIC, STATIC)
    return (DYNAMIC, STATIC, CALIBRATED)
