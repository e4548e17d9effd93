"""End to end: the predictions of a model in some variant beside those of a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .calibrate import row_pieces, to_float64
from .inputs import IGNORED, Batch, Runner, no_batches, plain_model
from .report import shown, table

if TYPE_CHECKING:
    from rich.table import Table

Metric = Callable[[Tensor, Tensor], Mapping[str, float]]
PredictionKind = Literal["classes", "labels", "values"]
"""What predictions are: the logits of classes that rule each other out, of labels that do not, or something else."""


@dataclass(frozen=True)
class EndToEndGap:
    """The predictions of a form or a merge compared with the reference: AuroRA's trained (dynamic) form, or the model
    of another method, unmerged."""

    form: str
    kl: float | None
    """Mean KL(reference || this) of the predicted distributions, in nats; None where the model predicts no classes."""
    largest_logit_difference: float
    """The largest absolute difference of a logit, at any position that counts."""
    agreement: float | None
    """Share of positions at which the largest logit is the same; None where the model predicts no classes."""
    metric: dict[str, float] = field(default_factory=dict)
    """The metric, where the batches have labels; see `merge_gap`."""


def end_to_end_table(what: str, entries: Sequence[EndToEndGap], predictions: int) -> Table:
    """One row for each form or merge."""
    names = list(entries[0].metric)
    rows = [
        [
            entry.form,
            shown(entry.kl, ".5f"),
            shown(entry.largest_logit_difference, ".3f"),
            shown(entry.agreement, ".2%"),
            *(shown(entry.metric[name], ".4f") for name in names),
        ]
        for entry in entries
    ]
    headings = [what, "KL from trained", "largest logit diff", "same argmax", *names]
    return table(f"end to end, {predictions:,} predictions", headings, rows)


Variants = Mapping[str, Callable[[], AbstractContextManager[Any]]]
"""What turns the model into a variant of itself, by the variant's name; the first one is the reference."""


def compare(
    runner: Runner,
    batches: Iterable[Batch],
    variants: Variants,
    metric: Metric | None = None,
    *,
    watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
    perplexity: bool = False,
) -> tuple[tuple[EndToEndGap, ...], int]:
    """Run each batch through each variant.

    Args:
        runner: runs the model.
        batches: the inputs.
        variants: of the model.
        metric: see `merge_gap`.
        watch: entered while the reference runs.
        perplexity: score a causal language model without labels on its inputs, and give the perplexity.

    Returns:
        One entry for each variant, and how many predictions were compared.

    Raises:
        CalibrationError: no batches.
    """
    causal = predicts_next_token(runner.model)
    found = {name: _Sums(metric, perplexity and causal) for name in variants}
    n = 0
    for batch in batches:
        n += 1
        reference: Any = None
        for name, variant in variants.items():
            with variant(), watch() if reference is None else nullcontext():
                output = runner.run(batch)
            logits = _predictions(output)
            if reference is None:
                kind, keep = _kind(runner.model, output, logits), _positions(runner, logits)
                given = tensor_of(batch, "labels")
                labels = None if given is None else given.to(logits.device)
                if labels is None and perplexity and causal:
                    labels = next_tokens(batch, logits.device)
            rows = logits[keep] if keep is not None else logits.reshape(-1, logits.shape[-1])
            reference = rows if reference is None else reference
            found[name].compare(rows, reference, kind)
            if labels is not None and (scored := _scored(logits, labels, kind, causal)):
                found[name].score(*scored)
    if n == 0:
        raise no_batches(runner.action)
    return tuple(each.result(name) for name, each in found.items()), next(iter(found.values())).n


class _Sums:
    """Compares the predictions of a variant with the reference, batch by batch, and scores them by labels."""

    def __init__(self, metric: Metric | None = None, perplexity: bool = False) -> None:
        self.metric, self.perplexity = metric, perplexity
        self.classes = False
        self.n = self.scored = 0
        self.kl = self.same = 0.0
        self.largest = torch.zeros((), dtype=torch.float64)
        self.figures: dict[str, float] = {}
        self.kept: list[tuple[Tensor, Tensor]] = []

    def compare(self, logits: Tensor, reference: Tensor, kind: PredictionKind) -> None:
        """(n, classes) each; a class that both mask, by a logit of -inf, adds nothing."""
        self.n += len(logits)
        self.classes = kind == "classes"
        if logits is reference and not logits.isnan().any():
            self.same += len(logits)
            return
        for rows in row_pieces(*logits.shape):
            mine, theirs = to_float64(logits[rows]), to_float64(reference[rows])
            off = torch.where(mine == theirs, 0.0, theirs - mine)
            self.largest = torch.maximum(self.largest, off.abs().max().cpu())  # a NaN stays
            if self.classes:  # log p - log q is the difference of the logits less that of their normalisers
                total, mine_total = theirs.logsumexp(-1, keepdim=True), mine.logsumexp(-1, keepdim=True)
                weighted = torch.where(theirs == -math.inf, 0.0, (theirs - total).exp() * off)
                self.kl += float(weighted.sum() - (total - mine_total).sum())
                self.same += _count(mine.argmax(-1) == theirs.argmax(-1), mine, theirs)

    def score(self, logits: Tensor, labels: Tensor) -> None:
        """logits (n, classes) or (n, 1), labels (n,); or both (n, labels), 1 where a label is there, else 0."""
        if self.metric is not None:
            self.kept.append((logits.cpu().double(), labels.cpu()))
            return
        for part in row_pieces(*logits.shape):
            rows = to_float64(logits[part])
            of_rows = labels[part].to(rows.device)
            found: dict[str, Any]
            if labels.dim() == 2:
                each = functional.binary_cross_entropy_with_logits(rows, of_rows.to(rows), reduction="none")
                found = {"nll": each.mean(-1).sum()}
            elif rows.shape[-1] == 1 or labels.is_floating_point():
                found = {"mse": (rows.squeeze(-1) - of_rows).square().sum()}
            else:
                nll = functional.cross_entropy(rows, of_rows.long(), reduction="sum")
                found = {"nll": nll, "accuracy": _count(rows.argmax(-1) == of_rows, rows)}
            for name, value in found.items():
                self.figures[name] = self.figures.get(name, 0.0) + float(value)
        self.scored += len(logits)

    def result(self, form: str) -> EndToEndGap:
        figures = {name: value / self.scored for name, value in self.figures.items()}
        if self.metric is not None and self.kept:
            given = self.metric(*(torch.cat(each) for each in zip(*self.kept, strict=True)))
            figures = {str(name): float(value) for name, value in given.items()}
        elif self.perplexity and "nll" in figures:
            figures["perplexity"] = math.exp(min(figures["nll"], 700.0))  # where exp is still finite
        if not self.classes:
            return EndToEndGap(form, None, float(self.largest), None, figures)
        n = max(self.n, 1)
        return EndToEndGap(form, self.kl / n, float(self.largest), self.same / n, figures)


def _count(true: Tensor, *logits: Tensor) -> float:
    """How many are true; NaN where there is NaN among the logits, which argmax takes for the largest."""
    return math.nan if any(bool(values.isnan().any()) for values in logits) else float(true.sum())


def _positions(runner: Runner, logits: Tensor) -> Tensor | None:
    """Which of the positions of (batch, tokens, classes) predictions are not padding."""
    mask = runner.masks.get("attention_mask" if runner.encoder is None else "decoder_attention_mask")
    if mask is None or logits.dim() != 3 or mask.shape != logits.shape[:2] or mask.all():
        return None
    return mask.to(logits.device)


def _scored(logits: Tensor, labels: Tensor, kind: PredictionKind, causal: bool) -> tuple[Tensor, Tensor] | None:
    """The predictions that have a label, and the labels; None where there is not one for each prediction, as where a
    model hears a text. Of a causal language model, position t predicts the label at t + 1."""
    of_tokens = labels.dim() == 2 and logits.dim() == 3
    if of_tokens:
        fits = labels.shape == logits.shape[:-1]
    else:
        fits = labels.shape == logits.shape or (logits.dim() <= 2 and labels.shape[:1] == logits.shape[:1])
    if not fits:
        return None
    if of_tokens and causal:
        labels, logits = labels[:, 1:], logits[:, :-1]
    if not of_tokens and kind != "labels":
        logits, labels = logits.reshape(labels.numel(), -1), labels.reshape(-1)
    if of_tokens or (kind == "classes" and not labels.is_floating_point()):
        logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    return (logits, labels) if len(labels) else None


def predicts_next_token(model: nn.Module) -> bool:
    """Whether it is a causal language model, by the name of its class."""
    base = plain_model(model)
    name = type(base).__name__
    if name.endswith("ForConditionalGeneration"):  # encoder-decoder models, and decoders that also read images
        return not getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    return "CausalLM" in name or name.endswith("LMHeadModel")


def _kind(model: nn.Module, output: Any, predictions: Tensor) -> PredictionKind:
    """Whether the predictions are the logits of classes, of labels of which several can hold, or other values."""
    problem = getattr(getattr(plain_model(model), "config", None), "problem_type", None)
    if tensor_of(output, "logits") is None or problem == "regression" or predictions.dim() > 3:
        return "values"
    if problem == "multi_label_classification":
        return "labels"
    return "classes" if predictions.shape[-1] > 1 else "values"


def tensor_of(output: Any, name: str) -> Tensor | None:
    """The tensor of that name in an output or a batch, which may be a plain dict."""
    value = output.get(name) if hasattr(output, "keys") else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


def _predictions(output: Any) -> Tensor:
    """What a model predicts: its `logits`, its `sample` (diffusers), its `sentence_embedding` or `scores`
    (sentence-transformers), its last hidden states; or else the first of its tensors that is more than a loss."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "sample", "sentence_embedding", "scores", "last_hidden_state"):
        if (value := tensor_of(output, name)) is not None:
            return value
    for value in (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    ):
        if isinstance(value, Tensor) and value.dim() > 1:
            return value
    raise TypeError(f"merge_gap finds no predictions in a {type(output).__name__}.")


def next_tokens(batch: Any, device: torch.device) -> Tensor | None:
    """A causal language model's inputs as labels: (batch, tokens), `IGNORED` for padding, and for what comes right
    after it: where texts are padded on the left, their first tokens, which are predicted from nothing."""
    if (ids := tensor_of(batch, "input_ids")) is None:
        return None
    mask = batch.get("attention_mask")
    if mask is None:
        return ids.to(device)
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, 1:][mask[:, :-1] == 0] = IGNORED
    return labels.to(device)
