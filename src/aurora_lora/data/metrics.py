"""The metrics: how each is called and shown, and how it is computed, with scikit-learn and SciPy in float64."""

import math
import warnings
from collections.abc import Collection, Sequence
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
        """The short name with its unit, for tables with many columns."""
        return f"{self.short or self.title} %" if self.percent else self.short or self.title

    @property
    def axis(self) -> str:
        """The label of a figure's axis."""
        parts = [self.title, *(["%"] if self.percent else []), *(["less is better"] if self.lower_is_better else [])]
        return ", ".join(parts)

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

    A row with NaN predicts nothing: every metric is then NaN. The likelihood is infinite where the model rules the
    right class out. Neither is hidden: a warning counts such rows.

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

    scores = np.asarray(logits, dtype=np.float64)  # (examples, classes)
    targets = np.asarray(labels).astype(np.int64)  # (examples,)
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or not targets.size:
        raise ValueError(f"expected logits (n, classes) and labels (n,), n > 0; got {scores.shape} and {targets.shape}")
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, got {targets.min()}..{targets.max()}")

    _warn_if_not_finite(scores, "logits")
    predicted = scores.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        log_probability = np.asarray(log_softmax(scores, axis=1))[np.arange(targets.size), targets]
    if np.isnan(scores).any():
        more = [name for name in ("matthews", "f1", "macro_f1") if name in also]
        return dict.fromkeys(("accuracy", "nll", *more), float("nan"))
    found = {"accuracy": float(accuracy_score(targets, predicted)), "nll": float(-log_probability.mean())}
    if "matthews" in also:
        found["matthews"] = float(matthews_corrcoef(targets, predicted))
    if "f1" in also:
        found["f1"] = float(f1_score(targets == 1, predicted == 1, zero_division=0))
    if "macro_f1" in also:
        found["macro_f1"] = float(f1_score(targets, predicted, average="macro", zero_division=0))
    return found


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

    scores = np.asarray(logits, dtype=np.float64)
    targets = np.asarray(labels, dtype=np.float64)
    if scores.ndim != 2 or targets.shape != scores.shape or not targets.size:
        raise ValueError(f"expected logits and labels (n, labels), n > 0; got {scores.shape} and {targets.shape}")
    _warn_if_not_finite(scores, "logits")
    if np.isnan(scores).any():
        return dict.fromkeys(("micro_f1", "macro_f1", "nll"), float("nan"))
    there, predicted = targets > 0.5, scores > 0
    found = {
        f"{average}_f1": float(f1_score(there, predicted, average=average, zero_division=0))
        for average in ("micro", "macro")
    }
    return found | {"nll": float(np.logaddexp(0, np.where(there, -scores, scores)).mean())}


def choice_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How a language model does on multiple-choice questions, from the log-likelihood of each choice.

    Args:
        scores: (examples, choices, 2): the log-likelihood of each choice after its prompt, and the same divided by the
            choice's number of characters; -inf where a question has fewer choices. With a third column, 1 for the
            choice that the model wrote when it could write freely, else 0.
        labels: (examples,), the index of the right choice.

    Returns:
        `accuracy` and `accuracy_norm`: how often the right choice has the largest log-likelihood, whole and per
        character (as `acc` and `acc_norm` of lm-evaluation-harness, but that the space before a choice counts as one of
        its characters); `nll` and `nll_norm`: mean negative logarithm of the right choice's probability, were one of
        the choices given, in nats, by the softmax of the same two. Between choices of unequal length `nll` favours the
        shorter one, and can be far above that of uniform guessing. With the third column also `accuracy_generated`, and
        `unanswered`, the share of questions for which it wrote none of the choices.

    Raises:
        ValueError: shapes that do not match, no examples, or a label that is no choice.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 3 or values.shape[2] not in (2, 3):
        raise ValueError(f"expected scores (n, choices, 2 or 3), got {values.shape}")
    targets = np.asarray(labels).astype(np.int64)
    there = values[:, :, 0] > -np.inf
    there |= np.isnan(values[:, :, 0])
    # A question's missing choices are no failure of the model: the finite stand-in keeps them out of the warning.
    whole, per_character = (np.where(there, values[:, :, column], -1e30) for column in (0, 1))
    found = classification_metrics(whole, targets)
    if not there[np.arange(targets.size), targets].all():
        raise ValueError("a label is no choice of its question")
    by_length = classification_metrics(per_character, targets)
    metrics = {
        "accuracy": found["accuracy"],
        "accuracy_norm": by_length["accuracy"],
        "nll": found["nll"],
        "nll_norm": by_length["nll"],
    }
    if values.shape[2] == 3:
        written = values[:, :, 2]
        metrics["accuracy_generated"] = float(written[np.arange(targets.size), targets].mean())
        metrics["unanswered"] = float((written.sum(axis=1) == 0).mean())
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

    values = np.asarray(predictions, dtype=np.float64)
    targets = np.asarray(labels, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.shape != targets.shape or values.size < 2:
        raise ValueError(f"expected predictions and labels (n,), n >= 2; got {values.shape} and {targets.shape}")

    mse = float(np.square(values - targets).mean())
    names = ("pearson", "spearman") if "spearman" in also else ("pearson",)
    if not _warn_if_not_finite(values, "predictions"):
        return dict.fromkeys(names, float("nan")) | {"mse": mse}
    for what, array in (("predictions", values), ("labels", targets)):
        if np.ptp(array) == 0:
            warnings.warn(f"all {array.size} {what} are {array[0]:g}: no correlation, reported as 0", stacklevel=2)
            return dict.fromkeys(names, 0.0) | {"mse": mse}
    found = {"pearson": float(pearsonr(values, targets).statistic), "mse": mse}
    if "spearman" in also:
        found["spearman"] = float(spearmanr(values, targets).statistic)
    return found


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
        `nll` and `token_accuracy`, means over the tokens, and `perplexity`, exp of `nll`.

    Raises:
        ValueError: another shape, or no tokens.
    """
    found = np.asarray(sums, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 3 or not found[:, 1].sum():
        raise ValueError(f"expected sums (n, 3) with tokens, got {found.shape}")
    _warn_if_not_finite(found, "log-likelihoods")
    nll, tokens, right = map(float, found.sum(axis=0))
    with np.errstate(over="ignore"):
        return {"nll": nll / tokens, "perplexity": float(np.exp(nll / tokens)), "token_accuracy": right / tokens}


def captured_metrics(distances: ArrayLike) -> dict[str, float]:
    """What share of a teacher's effect a model has captured: `1 - sum |h - h_teacher|^2 / sum |h_base - h_teacher|^2`.

    Args:
        distances: (examples, 2): the squared distances of the last hidden states of the model, and of the base model,
            to the teacher's, summed over tokens and channels.

    Returns:
        `captured`: 1 for the teacher itself, 0 for the base model, below 0 for a model that is farther off than that.

    Raises:
        ValueError: another shape, no examples, or a teacher that is the base model.
    """
    found = np.asarray(distances, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f"expected distances (n, 2), n > 0; got {found.shape}")
    error, effect = found.sum(axis=0)
    if effect == 0:
        raise ValueError("the teacher's hidden states are those of the base model: it has no effect to capture")
    return {"captured": float(1 - error / effect)}
