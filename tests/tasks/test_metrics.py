import math
import sys

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error

from aurora_lora.errors import UserError
from aurora_lora.tasks.metrics import classification_metrics, regression_metrics


@pytest.mark.parametrize(("examples", "classes"), [(1, 2), (7, 2), (200, 3), (50, 1)])
def test_classification_against_scikit_learn_and_a_loop(examples: int, classes: int) -> None:
    rng = np.random.default_rng(examples)
    logits = rng.normal(size=(examples, classes)).astype(np.float32) * 5
    labels = rng.integers(classes, size=examples)
    got = classification_metrics(logits, labels)

    right, nll = 0, 0.0
    for row, label in zip(logits.astype(float), labels, strict=True):
        right += int(np.argmax(row) == label)
        nll -= row[label] - math.log(sum(math.exp(x) for x in row))
    assert got["accuracy"] == pytest.approx(right / examples)
    assert got["nll"] == pytest.approx(nll / examples, abs=1e-12)

    assert got["accuracy"] == accuracy_score(labels, logits.argmax(1))
    if classes > 1:
        odds = np.exp(logits.astype(float))
        expected = log_loss(labels, odds / odds.sum(1, keepdims=True), labels=range(classes))
        assert got["nll"] == pytest.approx(expected, abs=1e-9)


def test_likelihood_of_extreme_logits_is_exact() -> None:
    assert classification_metrics([[1000.0, 0.0]], [1])["nll"] == 1000.0
    assert classification_metrics([[-1000.0, -1000.0]], [1])["nll"] == pytest.approx(math.log(2))


def test_non_finite_logits_are_not_hidden() -> None:
    # argmax takes NaN for the largest: both rows would count as right.
    with pytest.warns(UserWarning, match="non-finite logits in 1 of 2 rows"):
        got = classification_metrics([[math.nan, 0.0], [1.0, 0.0]], [0, 0])
    assert got["accuracy"] == 0.5
    assert math.isnan(got["nll"])
    with pytest.warns(UserWarning, match="1 of 2"):
        assert classification_metrics([[-math.inf, 0.0], [1.0, 0.0]], [0, 0]) == {"accuracy": 0.5, "nll": math.inf}


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(np.zeros((2, 2)), [0]), (np.zeros(2), [0, 1]), (np.zeros((0, 2)), []), (np.zeros((1, 2)), [2]), ([[0, 0]], [-1])],
)
def test_classification_refuses(logits: object, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected logits|labels must lie in"):
        classification_metrics(logits, labels)


@pytest.mark.parametrize("shape", [(2,), (30,), (30, 1)])
def test_regression_against_scipy_and_a_loop(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[0])
    got = regression_metrics(predictions, labels)

    values = predictions.ravel().astype(float)
    x, y = values - values.mean(), labels - labels.mean()
    loop = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert got["pearson"] == pytest.approx(loop, abs=1e-12)
    assert got["pearson"] == pytest.approx(pearsonr(values, labels).statistic, abs=1e-15)
    assert got["mse"] == pytest.approx(mean_squared_error(labels, values), abs=1e-12)


def test_constant_predictor_has_no_correlation() -> None:
    with pytest.warns(UserWarning, match="all 3 predictions are 0.5: no correlation, reported as 0"):
        assert regression_metrics([0.5, 0.5, 0.5], [0.5, 1.5, -0.5]) == {"pearson": 0.0, "mse": pytest.approx(2 / 3)}
    with pytest.warns(UserWarning, match="all 2 labels are 1"):
        assert regression_metrics([0.0, 1.0], [1.0, 1.0])["pearson"] == 0.0


def test_non_finite_predictions_are_not_hidden() -> None:
    with pytest.warns(UserWarning, match="non-finite predictions in 1 of 2 rows"):
        got = regression_metrics([math.nan, 1.0], [0.0, 1.0])
    assert math.isnan(got["pearson"])
    assert math.isnan(got["mse"])


@pytest.mark.parametrize(("predictions", "labels"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), (np.zeros((2, 2)), [0, 1])])
def test_regression_refuses(predictions: object, labels: list[float]) -> None:
    with pytest.raises(ValueError, match="expected predictions and labels"):
        regression_metrics(predictions, labels)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'aurora-lora\[train\]'"):
        classification_metrics([[0.0, 1.0]], [1])
