"""The metrics: how each is called and shown, and how it is computed, with scikit-learn and SciPy in float64."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..extras import extra
from ..files import NOT_FINITE


@dataclass(frozen=True)
class Metric:
    """How a metric is called, compared and shown.

    Args:
        name: the key in results.
        title: for people.
        percent: whether it is shown times 100.
        decimals: how many are shown.
        lower_is_better: whether the least is the best.
        short: what it is called in tables with many columns; its title if empty.
    """

    name: str
    title: str
    percent: bool = False
    decimals: int = 3
    lower_is_better: bool = False
    short: str = ""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: times it, the largest value is the best."""
        return -1 if self.lower_is_better else 1

    @property
    def scale(self) -> int:
        """What a value is multiplied by to be shown."""
        return 100 if self.percent else 1

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title} %" if self.percent else self.title

    @property
    def column(self) -> str:
        """The short name with its unit."""
        return f"{self.short or self.title}{' %' if self.percent else ''}"

    @property
    def axis(self) -> str:
        """The label of a figure's axis."""
        return f"{self.title}{', %' if self.percent else ''}{', less is better' if self.lower_is_better else ''}"

    def shown(self, value: float | None, sign: str = "") -> str:
        """A value for people; `sign="+"` for an end of an interval of differences, on one side of zero or the other."""
        if value is None or not math.isfinite(value):
            return NOT_FINITE
        shown = f"{self.scale * value:{sign}.{self.decimals}f}"
        return shown if sign else unsigned_zero(shown)

    def difference(self, value: float | None) -> str:
        """A difference for people: with its sign, unless it rounds to zero."""
        return unsigned_zero(self.shown(value, "+"))


def unsigned_zero(shown: str) -> str:
    """A number for people, without a sign where its digits are zeros: what was rounded has none."""
    return shown if shown.strip("+-0.") else shown.lstrip("+-")


_SHARE: dict[str, Any] = {"percent": True, "decimals": 1}
_LESS: dict[str, Any] = {"lower_is_better": True}
METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", **_SHARE),
        Metric("accuracy_norm", "accuracy per character", short="accuracy per char.", **_SHARE),
        Metric("accuracy_generated", "written", **_SHARE),
        Metric("unanswered", "unanswered", **_SHARE, **_LESS),
        Metric("perplexity", "perplexity", decimals=2, **_LESS),
        Metric("token_accuracy", "next token", **_SHARE),
        Metric("nll", "neg. log-likelihood", short="nll", **_LESS),
        Metric("nll_norm", "neg. log-likelihood per character", short="nll per char.", **_LESS),
        Metric("matthews", "matthews", **_SHARE),
        Metric("f1", "F1", **_SHARE),
        Metric("micro_f1", "micro F1", **_SHARE),
        Metric("macro_f1", "macro F1", **_SHARE),
        Metric("pearson", "pearson", **_SHARE),
        Metric("spearman", "spearman", **_SHARE),
        Metric("captured", "captured", **_SHARE),
        Metric("clip_i", "CLIP-I"),
        Metric("clip_t", "CLIP-T"),
        Metric("dino", "DINO"),
        Metric("explained", "explained", percent=True, decimals=2),
        Metric("noise_error", "noise error", decimals=4, **_LESS),
        Metric("mse", "mean squared error", short="mse", **_LESS),
    )
}
"""Every metric, in the order of the columns of a table."""


def metric_named(name: str) -> Metric:
    """A metric; one that is not in `METRICS`, of another version's results, is shown as it is."""
    return METRICS.get(name) or Metric(name, name)


def in_order(names: Collection[str]) -> list[Metric]:
    """The metrics of these names, in the order of the columns of a table, unknown ones last."""
    known = [metric for name, metric in METRICS.items() if name in names]
    return known + [metric_named(name) for name in names if name not in METRICS]


def classification_metrics(logits: ArrayLike, labels: ArrayLike, also: Collection[str] = ()) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood, `-mean log softmax(logits)[label]`.

    A row with NaN predicts nothing: every metric is then NaN, and a warning counts such rows.

    Args:
        logits: (examples, classes).
        labels: (examples,), integers from 0 to classes - 1.
        also: `"matthews"`, Matthews' correlation (0 for a constant prediction), `"f1"`, of class 1 (0 where it is
            never predicted), and `"macro_f1"`, the mean of F1 over the classes that are a label or predicted.

    Returns:
        `accuracy`, from 0 to 1, `nll`, in nats, and what was asked for.

    Raises:
        ValueError: shapes that do not match, no examples, or a label outside the classes.
    """
    with extra("train"):
        from scipy.special import log_softmax
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    scores, targets = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not set(targets.tolist()) <= set(range(scores.shape[-1])):
        raise ValueError(f"labels must lie in 0..{scores.shape[-1] - 1}, got {targets.min()}..{targets.max()}")
    _warn_if_not_finite(scores, "logits")
    computed: dict[str, Callable[[Any, Any], Any]] = {
        "accuracy": accuracy_score,
        "nll": lambda labels, _: -log_softmax(scores, axis=1)[np.arange(labels.size), labels].mean(),
        "matthews": matthews_corrcoef,
        "f1": lambda labels, predicted: f1_score(labels == 1, predicted == 1, zero_division=0),
        "macro_f1": lambda labels, predicted: f1_score(labels, predicted, average="macro", zero_division=0),
    }
    names = [name for name in computed if name in ("accuracy", "nll", *also)]
    if np.isnan(scores).any():
        return dict.fromkeys(names, math.nan)
    with np.errstate(invalid="ignore"):
        return {name: float(computed[name](targets, scores.argmax(axis=1))) for name in names}


def class_scores(labels: list[str], answers: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How well each class, of all these `names`, is told, from the label and the answer of each example.

    Returns:
        `by_class`, of each its `precision`, `recall` and `f1`, from 0 to 1 (0 for one that is never answered, or has no
        example), and its `examples`; and `confusion`, of each how often its examples got which answer.
    """
    with extra("train"):
        from sklearn.metrics import precision_recall_fscore_support

    each = precision_recall_fscore_support(labels, answers, labels=names, zero_division=0)
    keys, columns = ("precision", "recall", "f1", "examples"), [one.tolist() for one in each[:3]]
    columns.append([labels.count(name) for name in names])  # scikit-learn's own are no integers where none is right
    confusion: dict[str, Counter[str]] = {name: Counter() for name in names}
    for label, answer in zip(labels, answers, strict=True):
        confusion[label][answer] += 1
    by_class = {name: dict(zip(keys, own, strict=True)) for name, *own in zip(names, *columns, strict=True)}
    return {"by_class": by_class, "confusion": confusion}


def chance_levels(answers: Sequence[int]) -> dict[str, float]:
    """The metrics of uniform guessing.

    Args:
        answers: of each example, how many there are to guess among.

    Returns:
        `accuracy`, `accuracy_norm`, `nll` and `nll_norm`: means of 1/n, and of log n; nothing for no example.
    """
    if not answers:
        return {}
    right, nll = (sum(values) / len(answers) for values in ([1 / n for n in answers], [math.log(n) for n in answers]))
    return {"accuracy": right, "accuracy_norm": right, "nll": nll, "nll_norm": nll}


def multi_label_metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How well the labels of examples with any number of them are told.

    Args:
        logits: (examples, labels): a label is predicted where its logit is above 0.
        labels: (examples, labels), 1 or 0.

    Returns:
        `micro_f1`, over all labels of all examples; `macro_f1`, the mean over the labels (0 for one that is neither
        there nor predicted); and `nll`, the mean binary cross-entropy of a label, in nats. All are NaN with a NaN.

    Raises:
        ValueError: shapes that do not match, or no examples.
    """
    with extra("train"):
        from sklearn.metrics import f1_score

    scores, targets = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    _warn_if_not_finite(scores, "logits")
    if np.isnan(scores).any():
        return dict.fromkeys(("micro_f1", "macro_f1", "nll"), math.nan)
    there, predicted = targets > 0.5, scores > 0
    micro, macro = (f1_score(there, predicted, average=one, zero_division=0) for one in ("micro", "macro"))
    nll = np.logaddexp(0, np.where(there, -scores, scores)).mean()
    return {"micro_f1": float(micro), "macro_f1": float(macro), "nll": float(nll)}


def choice_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How a language model does on multiple-choice questions, from the log-likelihood of each choice.

    Args:
        scores: (examples, choices, 2): the log-likelihood of each choice after its prompt, and the same divided by the
            choice's number of characters; -inf where a question has fewer choices. With a third column, 1 for the
            choice that the model wrote when it could write freely, else 0.
        labels: (examples,), the index of the right choice.

    Returns:
        `accuracy` and `accuracy_norm`: how often the right choice has the largest log-likelihood, whole and per
        character (as `acc` and `acc_norm` of lm-evaluation-harness, but that the space before a choice counts);
        `nll` and `nll_norm`: mean negative logarithm of the right choice's probability, were one of the choices given,
        in nats, by the softmax of the same two. With the third column also `accuracy_generated`, and `unanswered`, the
        share of questions for which it wrote none of the choices.

    Raises:
        ValueError: no examples, or a label that is no choice.
    """
    values, targets = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(np.int64)
    rows = np.arange(targets.size)
    missing = values[:, :, 0] == -np.inf
    # A question's missing choices are no failure of the model: the finite stand-in keeps them out of the warning.
    whole, by_length = (classification_metrics(np.where(missing, -1e30, values[:, :, k]), targets) for k in (0, 1))
    if missing[rows, targets].any():
        raise ValueError("a label is no choice of its question")
    metrics = {name: whole[name] for name in ("accuracy", "nll")}
    metrics |= {f"{name}_norm": by_length[name] for name in ("accuracy", "nll")}
    if values.shape[2] == 3:
        metrics["accuracy_generated"] = float(values[rows, targets, 2].mean())
        metrics["unanswered"] = float((values[:, :, 2].sum(axis=1) == 0).mean())
    return metrics


def regression_metrics(predictions: ArrayLike, labels: ArrayLike, also: Collection[str] = ()) -> dict[str, float]:
    """Pearson's correlation and mean squared error.

    Args:
        predictions: (examples,) or (examples, 1).
        labels: (examples,).
        also: `"spearman"`, the correlation of the ranks.

    Returns:
        `pearson`, from -1 to 1, `mse`, and what was asked for. A constant input has no correlation: 0, with a warning.
        Non-finite predictions give NaN for all, or infinity for `mse`.

    Raises:
        ValueError: shapes that do not match, or fewer than two examples.
    """
    with extra("train"):
        from scipy.stats import pearsonr, spearmanr

    values, targets = np.asarray(predictions, dtype=np.float64).ravel(), np.asarray(labels, dtype=np.float64)
    mse = float(np.square(values - targets).mean())
    computed = {"pearson": pearsonr} | ({"spearman": spearmanr} if "spearman" in also else {})
    if not _warn_if_not_finite(values, "predictions"):
        return dict.fromkeys(computed, math.nan) | {"mse": mse}
    for what, array in (("predictions", values), ("labels", targets)):
        if np.ptp(array) == 0:
            warnings.warn(f"all {array.size} {what} are {array[0]:g}: no correlation, reported as 0", stacklevel=2)
            return dict.fromkeys(computed, 0.0) | {"mse": mse}
    return {name: float(one(values, targets).statistic) for name, one in computed.items()} | {"mse": mse}


def _warn_if_not_finite(values: NDArray[np.float64], what: str) -> bool:
    """True if everything is finite; else says in how many rows it is not."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        warnings.warn(f"non-finite {what} in {(~finite).sum()} of {finite.size} rows", stacklevel=3)
    return bool(finite.all())


def chat_metrics(sums: ArrayLike) -> dict[str, float]:
    """How well a language model foresees answers, over all of their tokens.

    Args:
        sums: (conversations, 3): of each, the negative log-likelihood of its answers' tokens, in nats, how many tokens
            there are, and for how many of them the right one is the most likely.

    Returns:
        `nll` and `token_accuracy`, means over the tokens, and `perplexity`, exp of `nll`; a ValueError without tokens.
    """
    found = np.asarray(sums, dtype=np.float64)
    _warn_if_not_finite(found, "log-likelihoods")
    nll, tokens, right = map(float, found.sum(axis=0))
    if not tokens:
        raise ValueError("there are no tokens to score")
    with np.errstate(over="ignore"):
        return {"nll": nll / tokens, "perplexity": float(np.exp(nll / tokens)), "token_accuracy": right / tokens}


def captured_metrics(distances: ArrayLike) -> dict[str, float]:
    """What share of a teacher's effect a model has captured: `1 - sum |h - h_teacher|^2 / sum |h_base - h_teacher|^2`.

    Args:
        distances: (examples, 2): the squared distances of the last hidden states of the model, and of the base model,
            to the teacher's, summed over tokens and channels.

    Returns:
        `captured`: 1 for the teacher itself, 0 for the base model; a ValueError where the two are the same.
    """
    error, effect = np.asarray(distances, dtype=np.float64).sum(axis=0)
    if effect == 0:
        raise ValueError("the teacher's hidden states are those of the base model: it has no effect to capture")
    return {"captured": float(1 - error / effect)}
