"""`merge_gap`: how far the mergeable forms are from the trained one, layer by layer and end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CalibrationError, NotCalibratedError
from ..tuner import AuroraLayer, active_adapters, aurora_layers, check_calibrated, set_form
from .calibrate import check_unmerged, trained_state
from .inputs import NO_BATCHES, Runner, as_batches
from .moments import float64_device
from .products import CHUNK_BYTES, FLOAT64_BYTES

if TYPE_CHECKING:
    from rich.table import Table

Metric = Callable[[Tensor, Tensor], Mapping[str, float]]


@dataclass(frozen=True)
class LayerGap:
    """One adapter of one layer, in one linear form, over the inputs x that reach it in the trained model."""

    layer: str
    adapter: str
    form: str
    relative_error: float
    """|B sigma(Ax) - B M x| / |B sigma(Ax)|, both norms over all inputs: 0 is exact, 1 is as bad as leaving it out."""
    explained_variance: float
    """1 - E|B sigma(Ax) - B M x|^2 / E|B sigma(Ax) - its mean|^2; negative where the mean alone would do better."""


@dataclass(frozen=True)
class EndToEndGap:
    """The predictions of one form beside those of the trained (dynamic) one."""

    form: str
    kl: float | None
    """Mean KL(dynamic || form) of the predicted distributions, in nats; None where the model predicts no classes."""
    largest_logit_difference: float
    agreement: float | None
    """Share of positions at which the largest logit is the same; None where the model predicts no classes."""
    metric: dict[str, float] = field(default_factory=dict)
    """Where the batches have labels; see `merge_gap`."""


@dataclass(frozen=True)
class MergeGap:
    """The report of `merge_gap`. Where a form gives NaN or infinity, so are its figures: never 0 or 1."""

    layers: tuple[LayerGap, ...]
    end_to_end: tuple[EndToEndGap, ...]
    """One entry for each form, the dynamic one first."""
    predictions: int
    """How many predictions (examples, or token positions) were compared."""

    def worst(self, form: str, n: int = 3) -> tuple[LayerGap, ...]:
        """The n layers that lose most in a form."""
        entries = [entry for entry in self.layers if entry.form == form]
        lost = [math.inf if math.isnan(entry.relative_error) else entry.relative_error for entry in entries]
        order = sorted(range(len(entries)), key=lambda place: lost[place], reverse=True)
        return tuple(entries[place] for place in order[:n])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def tables(self) -> tuple[Table, Table]:
        """End to end, and layer by layer, for a terminal. Needs rich."""
        from .gap_tables import end_to_end_table, layer_table

        return end_to_end_table(self), layer_table(self)


def merge_gap(
    model: nn.Module,
    batches: Any,
    *,
    metric: Metric | None = None,
    tokenizer: Any = None,
    text_columns: tuple[str, ...] = ("text",),
    batch_size: int = 32,
) -> MergeGap:
    """Measure what a merge would lose: the static and, if calibrated, the calibrated form beside the trained one.

    Changes nothing: forms, training mode and random state are as before. Use inputs that `calibrate` did not see.

    Args:
        model: a model with active AuroRA adapters trained in the dynamic form, not merged.
        batches: as in `calibrate`. Where a batch has `labels`, the metric of each form is reported: mean negative
            log-likelihood and accuracy (of the next token, for a causal language model), or the mean squared error of
            a regression.
        metric: computes other figures from the (predictions, labels) of all batches, which are then kept in memory.
        tokenizer: as in `calibrate`.
        text_columns: as in `calibrate`.
        batch_size: as in `calibrate`.

    Raises:
        CalibrationError: no batches, a layer that no input reached, a trained adapter that gives NaN or infinity, a
            merged one, or adapters that are switched off.
        ValueError: no AuroRA adapter.
        FormError: the adapter was trained in the static form, which merges exactly.
    """
    check_unmerged(model, "merge_gap")
    forms = _forms(model)
    causal = _predicts_next_token(model)
    with trained_state(model), Runner(model) as runner:
        sums = _Sums(model, runner, [form for form in forms if form != "dynamic"])
        predictions = {form: _Predictions(metric) for form in forms}
        n = 0
        for batch in as_batches(batches, tokenizer, text_columns=text_columns, batch_size=batch_size):
            n += 1
            with sums:
                output = runner.run(batch)
            reference, classes = _predictions(output), _are_classes(model, output)
            labels = _labels(batch, reference.device)
            keep = _positions(runner, reference)
            for form in forms:
                with set_form(model, form):
                    logits = reference if form == "dynamic" else _predictions(runner.run(batch))
                predictions[form].add(logits, reference, keep, labels, shift=causal, classes=classes)
    if n == 0:
        raise CalibrationError(NO_BATCHES.replace("calibrate", "merge_gap"))
    ends = tuple(predictions[form].result(form) for form in forms)
    return MergeGap(sums.result(), ends, predictions["dynamic"].n)


def _forms(model: nn.Module) -> tuple[str, ...]:
    """The forms that can be compared; calibrated only where every active adapter has a fresh matrix."""
    with set_form(model, "dynamic"):  # refuses adapters that were trained static
        pass
    try:
        check_calibrated(model)
    except NotCalibratedError:
        return ("dynamic", "static")
    return ("dynamic", "static", "calibrated")


class _Sums:
    """While entered, sums the squared errors of each layer's linear maps over the inputs that reach it."""

    def __init__(self, model: nn.Module, runner: Runner, forms: list[str]) -> None:
        self.runner = runner
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.layers: dict[tuple[str, str], _LayerSums] = {}
        names = active_adapters(model)
        for path, layer in aurora_layers(model):
            for name in names:
                if name in layer.aurora_A and layer.has_forms:  # an embedding merges exactly
                    self.layers[path, name] = _LayerSums(layer, name, forms)

    def __enter__(self) -> _Sums:
        for entry in self.layers.values():
            self.hooks.append(entry.layer.register_forward_pre_hook(self._hook(entry), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def _hook(self, entry: _LayerSums) -> Any:
        def measure(module: AuroraLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry.add(self.runner.vectors(module, args[0] if args else kwargs["x"]))

        return measure

    def result(self) -> tuple[LayerGap, ...]:
        return tuple(gap for (path, name), entry in self.layers.items() for gap in entry.result(path, name))


class _LayerSums:
    """The sums of one adapter of one layer. |B v|^2 = v^T (B^T B) v is taken in the rank space."""

    def __init__(self, layer: AuroraLayer, name: str, forms: list[str]) -> None:
        self.layer, self.name = layer, name
        factors = {form: layer.get_factors(name, form) for form in forms}
        self.matrices = {form: _wide(lora_A) for form, (lora_A, _) in factors.items()}
        B = _wide(factors[forms[0]][1])  # s B: the scale drops out of every ratio
        self.gram = B.T @ B
        self.n = 0
        self.power = 0.0
        self.mean = B.new_zeros(B.shape[1])
        self.errors = dict.fromkeys(forms, 0.0)

    def _square(self, v: Tensor) -> float:
        return float(((v @ self.gram) * v).sum())

    def add(self, x: Tensor) -> None:
        A = self.layer.aurora_A[self.name]
        x = self.layer._cast_input_dtype(x, A.dtype)
        sigma = self.layer.sigma(self.name, functional.linear(x, A))  # (n, r)
        sigma = _wide(sigma)
        self.n += len(sigma)
        self.power += self._square(sigma)
        self.mean += sigma.sum(0)
        for piece, wide in _pieces(sigma, x):
            for form, M in self.matrices.items():
                self.errors[form] += self._square(piece - wide @ M.T)

    def result(self, path: str, name: str) -> list[LayerGap]:
        if self.n == 0:
            raise CalibrationError(f"No input reached {path}: the inputs of merge_gap must use every adapted layer.")
        if not math.isfinite(self.power):
            raise CalibrationError(f"The adapter of {path} gives no finite numbers: is the model or a batch broken?")
        mean = self.mean / self.n
        variance = self.power - self.n * self._square(mean[None])
        return [
            LayerGap(path, name, form, _ratio(error, self.power) ** 0.5, 1 - _ratio(error, variance))
            for form, error in self.errors.items()
        ]


def _ratio(error: float, power: float) -> float:
    """Non-negative up to rounding; an adapter that does nothing (B = 0) loses nothing. NaN of what is not finite."""
    if not math.isfinite(error) or not math.isfinite(power):
        return math.nan
    return max(error, 0.0) / power if power > 0 else 0.0


class _Predictions:
    """Compares the predictions of a form with the reference, batch by batch."""

    def __init__(self, metric: Metric | None) -> None:
        self.metric = metric
        self.score = _Score()
        self.n = 0
        self.kl = 0.0
        self.same = 0.0
        self.largest = 0.0
        self.classes = False
        self.kept: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(
        self,
        logits: Tensor,
        reference: Tensor,
        keep: Tensor | None,
        labels: Tensor | None,
        *,
        shift: bool,
        classes: bool,
    ) -> None:
        mine, theirs = _rows(logits, keep), _rows(reference, keep)  # (n, classes)
        self.n += len(mine)
        self.classes = classes
        for one, other in _pieces(mine, theirs):
            self._compare(one, other)
        if labels is None:
            return
        if labels.dim() == 2 and logits.dim() == 3:  # a label for each position; -100 is none
            if shift:  # position t predicts token t + 1
                labels, logits = labels[:, 1:], logits[:, :-1]
            logits, labels = logits[labels != -100], labels[labels != -100]
        else:
            logits, labels = logits.reshape(labels.numel(), -1), labels.reshape(-1)
        if self.metric is None:
            self.score.add(logits, labels)
        else:
            self.kept.append(logits.double().cpu())
            self.labels.append(labels.cpu())

    def _compare(self, mine: Tensor, theirs: Tensor) -> None:
        """(n, classes) each, in float64."""
        difference = float((mine - theirs).abs().max())
        if not math.isnan(self.largest):  # a NaN must show
            self.largest = difference if math.isnan(difference) else max(self.largest, difference)
        if self.classes:
            p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
            self.kl += float((p.exp() * (p - q)).sum())
            self.same += _count(mine.argmax(-1) == theirs.argmax(-1), mine, theirs)

    def result(self, form: str) -> EndToEndGap:
        figures = self.score.result()
        if self.metric is not None and self.labels:
            figures = dict(self.metric(torch.cat(self.kept), torch.cat(self.labels)))
        kl, agreement = self.kl / max(self.n, 1), self.same / max(self.n, 1)
        if not self.classes:
            return EndToEndGap(form, None, self.largest, None, figures)
        return EndToEndGap(form, kl, self.largest, agreement, figures)


class _Score:
    """Negative log-likelihood and accuracy for classes, mean squared error for values, batch by batch."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: dict[str, float] = {}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits (n, classes) or (n, 1), labels (n,)."""
        self.n += len(labels)
        start = 0
        for (wide,) in _pieces(logits):
            self._add(wide, labels[start : start + len(wide)].to(wide.device))
            start += len(wide)

    def _add(self, logits: Tensor, labels: Tensor) -> None:
        if logits.shape[-1] == 1 or labels.is_floating_point():
            found: dict[str, Any] = {"mse": (logits.squeeze(-1) - labels).square().sum()}
        else:
            nll = functional.cross_entropy(logits, labels.long(), reduction="sum")
            found = {"nll": nll, "accuracy": _count(logits.argmax(-1) == labels, logits)}
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def result(self) -> dict[str, float]:
        return {name: value / max(self.n, 1) for name, value in self.sums.items()}


def _count(true: Tensor, *logits: Tensor) -> float:
    """How many are true; NaN where there is NaN among the logits, which argmax takes for the largest."""
    return math.nan if any(bool(values.isnan().any()) for values in logits) else float(true.sum())


def _rows(logits: Tensor, keep: Tensor | None) -> Tensor:
    return logits[keep] if keep is not None else logits.reshape(-1, logits.shape[-1])


def _pieces(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each (n, width), in float64: about CHUNK_BYTES of the widest."""
    step = max(1, CHUNK_BYTES // (FLOAT64_BYTES * max(values.shape[-1] for values in rows)))
    for start in range(0, len(rows[0]), step):
        yield tuple(_wide(values[start : start + step]) for values in rows)


def _wide(values: Tensor) -> Tensor:
    return values.to(float64_device(values.device)).double()


def _positions(runner: Runner, logits: Tensor) -> Tensor | None:
    """Which of the positions of (batch, tokens, classes) predictions are not padding."""
    name = "attention_mask" if runner.encoder is None else "decoder_attention_mask"
    mask = runner.masks.get(name)
    fits = mask is not None and logits.dim() == 3 and mask.shape == logits.shape[:2]
    return mask.to(logits.device) if mask is not None and fits else None


def _predicts_next_token(model: nn.Module) -> bool:
    get_base_model: Any = getattr(model, "get_base_model", None)
    base = get_base_model() if get_base_model is not None else model
    name = type(base).__name__
    if name.endswith("ForConditionalGeneration"):  # encoder-decoder models, and decoders that also read images
        return not getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    return "CausalLM" in name or name.endswith("LMHeadModel")


def _are_classes(model: nn.Module, output: Any) -> bool:
    """Whether the predictions are the logits of classes: not of a regression, and no images or hidden states."""
    regression = getattr(getattr(model, "config", None), "problem_type", None) == "regression"
    logits = getattr(output, "logits", None)
    return isinstance(logits, Tensor) and logits.shape[-1] > 1 and not regression


def _predictions(output: Any) -> Tensor:
    """What a model predicts: its `logits`, its `sample` (diffusers), its last hidden states, or the output itself."""
    for name in ("logits", "sample", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, Tensor):
        raise TypeError(f"merge_gap finds no predictions in a {type(output).__name__}.")
    return value


def _labels(batch: Any, device: torch.device) -> Tensor | None:
    labels = batch.get("labels") if isinstance(batch, Mapping) or hasattr(batch, "keys") else None
    return labels.to(device) if isinstance(labels, Tensor) else None
