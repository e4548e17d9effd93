"""Each metric against scikit-learn or SciPy, and against a plain loop or its formula."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, mean_squared_error

from aurora_lora.data import TASKS
from aurora_lora.data.metrics import (
    METRICS,
    chance_levels,
    choice_metrics,
    classification_metrics,
    in_order,
    metric_named,
    multi_label_metrics,
    regression_metrics,
)
from aurora_lora.files import NOT_FINITE
from aurora_lora.train.kinds import kind_of


@pytest.mark.parametrize(("examples", "classes"), [(1, 2), (80, 2), (200, 3), (50, 1)])
def test_classification(examples: int, classes: int) -> None:
    rng = np.random.default_rng(examples)
    logits = rng.normal(size=(examples, classes)).astype(np.float32) * 5
    labels = rng.integers(classes, size=examples)
    predicted = logits.argmax(1)
    got = classification_metrics(logits, labels, also=("matthews", "f1", "macro_f1"))
    assert list(got) == ["accuracy", "nll", "matthews", "f1", "macro_f1"]
    nll = [
        math.log(sum(math.exp(x) for x in row)) - row[k] for row, k in zip(logits.astype(float), labels, strict=True)
    ]
    assert got["nll"] == pytest.approx(np.mean(nll), abs=1e-12)
    assert got["accuracy"] == accuracy_score(labels, predicted) == np.mean(labels == predicted)
    assert got["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    if classes > 1:
        odds = np.exp(logits.astype(float))
        expected = log_loss(labels, odds / odds.sum(1, keepdims=True), labels=range(classes))
        assert got["nll"] == pytest.approx(expected, abs=1e-9)
    if examples > 50:
        each = [f1_score(labels == k, predicted == k, zero_division=0) for k in range(classes)]
        assert got["macro_f1"] == pytest.approx(np.mean(each))
        hits, false, missed = (int(((predicted == p) & (labels == t)).sum()) for p, t in ((1, 1), (1, 0), (0, 1)))
        if classes == 2:
            assert got["f1"] == pytest.approx(2 * hits / (2 * hits + false + missed))
    assert classification_metrics(logits, labels).keys() == {"accuracy", "nll"}


def test_extreme_logits_and_labels() -> None:
    assert classification_metrics([[1000.0, 0.0]], [1])["nll"] == 1000.0
    assert classification_metrics([[-1000.0, -1000.0]], [1])["nll"] == pytest.approx(math.log(2))
    # argmax takes NaN for the largest: both rows would count as right
    with pytest.warns(UserWarning, match="non-finite logits in 1 of 2 rows"):
        got = classification_metrics([[math.nan, 0.0], [1.0, 0.0]], [0, 0], also=("f1",))
    assert all(math.isnan(got[name]) for name in ("accuracy", "nll", "f1"))
    with pytest.warns(UserWarning, match="1 of 2"):
        assert classification_metrics([[-math.inf, 0.0], [1.0, 0.0]], [0, 0]) == {"accuracy": 0.5, "nll": math.inf}
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        classification_metrics(np.zeros((1, 2)), [-1])


@pytest.mark.parametrize("shape", [(2,), (30,), (30, 1)])
def test_regression(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(5, size=shape).astype(np.float32), rng.normal(size=shape[0])
    got = regression_metrics(predictions, labels, also=("spearman",))
    values = predictions.ravel().astype(float)
    x, y = values - values.mean(), labels - labels.mean()
    loop = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert got["pearson"] == pytest.approx(loop, abs=1e-12)
    assert got["pearson"] == pytest.approx(pearsonr(values, labels).statistic, abs=1e-15)
    assert got["spearman"] == pytest.approx(spearmanr(values, labels).statistic, abs=1e-15)
    assert got["mse"] == pytest.approx(mean_squared_error(labels, values), abs=1e-12)


def test_a_constant_and_what_is_not_finite() -> None:
    expected = {"pearson": 0.0, "spearman": 0.0, "mse": pytest.approx(2 / 3)}
    with pytest.warns(UserWarning, match="all 3 predictions are 0.5: no correlation, reported as 0"):
        assert regression_metrics([0.5, 0.5, 0.5], [0.5, 1.5, -0.5], also=("spearman",)) == expected
    with pytest.warns(UserWarning, match="all 2 labels are 1"):
        assert regression_metrics([0.0, 1.0], [1.0, 1.0])["pearson"] == 0.0
    with pytest.warns(UserWarning, match="non-finite predictions in 1 of 2 rows"):
        assert all(map(math.isnan, regression_metrics([math.nan, 1.0], [0.0, 1.0]).values()))


def test_choices() -> None:
    never = -math.inf
    scores = [[[-3, -1.5], [-4, -1.0]], [[-2, -2.0], [-1, -0.1]], [[-5, -1], [never, never]]]
    got = choice_metrics(scores, [0, 0, 0])
    assert got["accuracy"] == pytest.approx(2 / 3)  # the first is right by the whole likelihood,
    assert got["accuracy_norm"] == pytest.approx(1 / 3)  # and wrong by the one per character
    parts = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1)), 0]
    assert got["nll"] == pytest.approx(sum(parts) / 3)
    parts = [math.log(1 + math.exp(0.5)), math.log(1 + math.exp(1.9)), 0]
    assert got["nll_norm"] == pytest.approx(sum(parts) / 3)  # the same by the likelihoods per character
    with pytest.warns(UserWarning, match="non-finite"):
        got = choice_metrics([[[math.nan, math.nan], [-1, -1]], [[-1, -1], [-2, -2]]], [0, 0])
    assert all(math.isnan(value) for value in got.values())
    with pytest.raises(ValueError, match="a label is no choice of its question"):
        choice_metrics([[[-1, -1], [never, never]]], [1])


def test_uniform_guessing_of_questions_with_unlike_numbers_of_answers() -> None:
    answers = [2, 4, 4]
    same = [[[0.0, 0.0]] * count + [[-math.inf, -math.inf]] * (4 - count) for count in answers]
    found, got = chance_levels(answers), choice_metrics(same, [0, 0, 0])
    assert (found["nll"], found["nll_norm"]) == pytest.approx((got["nll"], got["nll_norm"]))
    assert found["accuracy"] == found["accuracy_norm"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert chance_levels([]) == {}


def test_what_is_written_is_right_wrong_or_none_of_the_choices() -> None:
    scores = np.zeros((3, 2, 3))
    scores[0, 1, 2] = scores[1, 0, 2] = 1
    found = choice_metrics(scores, [1, 1, 1])
    assert (found["accuracy_generated"], found["unanswered"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize(("examples", "labels"), [(1, 1), (9, 2), (200, 5)])
def test_several_labels(examples: int, labels: int) -> None:
    rng = np.random.default_rng(examples)
    logits = rng.normal(size=(examples, labels)) * 3
    there = rng.integers(2, size=(examples, labels))
    got = multi_label_metrics(logits, there)
    right = sum(int(one > 0 and label) for one, label in zip(logits.flat, there.flat, strict=True))
    wrong = sum(int((one > 0) != bool(label)) for one, label in zip(logits.flat, there.flat, strict=True))
    assert got["micro_f1"] == pytest.approx(2 * right / (2 * right + wrong) if right or wrong else 0)
    expected = [f1_score(there[:, k], logits[:, k] > 0, zero_division=0) for k in range(labels)]
    assert got["macro_f1"] == pytest.approx(np.mean(expected))
    odds = 1 / (1 + np.exp(-logits))
    assert got["nll"] == pytest.approx(-np.mean(np.where(there, np.log(odds), np.log(1 - odds))), abs=1e-12)


def test_several_labels_at_the_edges() -> None:
    assert multi_label_metrics([[0.0, 1.0]], [[0, 1]])["micro_f1"] == 1  # a logit of 0 predicts no label
    assert multi_label_metrics([[1000.0, -1000.0]], [[0, 1]])["nll"] == 1000.0
    with pytest.warns(UserWarning, match="non-finite logits in 1 of 2 rows"):
        got = multi_label_metrics([[math.nan, 1.0], [1.0, 0.0]], [[1, 0], [0, 0]])
    assert all(map(math.isnan, got.values()))


def test_every_metric_of_a_task_is_in_the_registry() -> None:
    for task in TASKS.values():
        assert set(kind_of(task).facts.metric_names(task)) <= METRICS.keys()


def test_metrics_for_people() -> None:
    accuracy, nll = METRICS["accuracy"], METRICS["nll"]
    assert [one.shown(0.12345) for one in (accuracy, nll, METRICS["explained"])] == ["12.3", "0.123", "12.35"]
    assert {nll.shown(value) for value in (None, math.nan, math.inf)} == {NOT_FINITE}
    assert (accuracy.heading, accuracy.column, accuracy.axis) == ("accuracy %", "accuracy %", "accuracy, %")
    assert (nll.heading, nll.column) == ("neg. log-likelihood", "nll")
    assert METRICS["unanswered"].axis == "unanswered, %, less is better"
    assert [accuracy.difference(value) for value in (-0.0004, 0.0, -0.0006, 0.1)] == ["0.0", "0.0", "-0.1", "+10.0"]
    # what rounds to zero has no sign, but at the end of an interval
    assert (accuracy.shown(-0.0004), accuracy.shown(-0.0004, "+")) == ("0.0", "-0.0")
    # one that is in no registry is shown as it is, last
    assert [metric.name for metric in in_order({"bleu", "nll", "accuracy"})] == ["accuracy", "nll", "bleu"]
    assert metric_named("bleu").shown(0.25) == "0.250"
