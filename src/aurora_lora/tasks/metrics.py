"""The metrics, computed with scikit-learn and SciPy in float64."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aurora_lora.tasks._extra import train_extra


def classification_metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood, `-mean log softmax(logits)[label]`.

    A row with NaN predicts nothing and counts as wrong; the likelihood is then NaN, and it is infinite where the
    model rules the right class out. Neither is hidden: a warning counts such rows.

    Args:
        logits: (examples, classes).
        labels: (examples,), integers from 0 to classes - 1.

    Returns:
        `accuracy`, from 0 to 1, and `nll`, in nats.

    Raises:
        ValueError: shapes that do not match, no examples, or a label outside the classes.
    """
    with train_extra():
        from scipy.special import log_softmax
        from sklearn.metrics import accuracy_score

    scores = np.asarray(logits, dtype=np.float64)  # (examples, classes)
    targets = np.asarray(labels).astype(np.int64)  # (examples,)
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or not targets.size:
        raise ValueError(f"expected logits (n, classes) and labels (n,), n > 0; got {scores.shape} and {targets.shape}")
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, got {targets.min()}..{targets.max()}")

    _warn_if_not_finite(scores, "logits")
    # argmax would take the first NaN for the largest logit, and count it right by luck.
    predicted = np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))
    with np.errstate(invalid="ignore"):
        log_probability = np.asarray(log_softmax(scores, axis=1))[np.arange(targets.size), targets]
    return {"accuracy": float(accuracy_score(targets, predicted)), "nll": float(-log_probability.mean())}


def regression_metrics(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Pearson's correlation and mean squared error.

    Args:
        predictions: (examples,) or (examples, 1).
        labels: (examples,).

    Returns:
        `pearson`, from -1 to 1, and `mse`. A constant input has no correlation: 0, with a warning. Non-finite
        predictions give NaN for both, or infinity for `mse`.

    Raises:
        ValueError: shapes that do not match, or fewer than two examples.
    """
    with train_extra():
        from scipy.stats import pearsonr

    values = np.asarray(predictions, dtype=np.float64)
    targets = np.asarray(labels, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.shape != targets.shape or values.size < 2:
        raise ValueError(f"expected predictions and labels (n,), n >= 2; got {values.shape} and {targets.shape}")

    mse = float(np.square(values - targets).mean())
    if not _warn_if_not_finite(values, "predictions"):
        return {"pearson": float("nan"), "mse": mse}
    for what, array in (("predictions", values), ("labels", targets)):
        if np.ptp(array) == 0:
            warnings.warn(f"all {array.size} {what} are {array[0]:g}: no correlation, reported as 0", stacklevel=2)
            return {"pearson": 0.0, "mse": mse}
    return {"pearson": float(pearsonr(values, targets).statistic), "mse": mse}


def _warn_if_not_finite(values: NDArray[np.float64], what: str) -> bool:
    """True if everything is finite; else says in how many rows it is not."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        warnings.warn(f"non-finite {what} in {(~finite).sum()} of {finite.size} rows", stacklevel=3)
    return bool(finite.all())
