import math
import sys

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
from aurora_lora.errors import UserError
from aurora_lora.files import NOT_FINITE
from aurora_lora.train.kinds import kind_of
from aurora_lora.train.score_tables import score_table


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
    assert math.isnan(got["accuracy"])
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


@pytest.mark.parametrize("classes", [2, 3])
def test_matthews_and_f1_against_their_formulas(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(80, classes)), rng.integers(classes, size=80)
    got = classification_metrics(logits, labels, also=("matthews", "f1"))
    predicted = logits.argmax(1)
    assert list(got) == ["accuracy", "nll", "matthews", "f1"]
    assert got["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    if classes == 2:
        hits, false, missed = (int(((predicted == p) & (labels == t)).sum()) for p, t in ((1, 1), (1, 0), (0, 1)))
        rejected = int(((predicted == 0) & (labels == 0)).sum())
        odds = math.sqrt((hits + false) * (hits + missed) * (rejected + false) * (rejected + missed))
        assert got["matthews"] == pytest.approx((hits * rejected - false * missed) / odds)
        assert got["f1"] == pytest.approx(2 * hits / (2 * hits + false + missed)) == f1_score(labels, predicted)


def test_matthews_of_a_constant_predictor_is_zero() -> None:
    for column in (0, 1):
        got = classification_metrics(np.eye(2)[[column] * 5], [0, 1, 1, 0, 1], also=("matthews", "f1"))
        assert got["matthews"] == 0
    with pytest.warns(UserWarning, match="non-finite"):
        got = classification_metrics([[math.nan, 0.0], [0.0, 1.0]], [1, 1], also=("f1",))
    assert math.isnan(got["f1"])


def test_spearman_against_scipy() -> None:
    rng = np.random.default_rng(1)
    values, labels = rng.integers(5, size=40).astype(float), rng.normal(size=40)
    got = regression_metrics(values, labels, also=("spearman",))
    assert got["spearman"] == pytest.approx(spearmanr(values, labels).statistic, abs=1e-15)
    assert regression_metrics(values, np.exp(values), also=("spearman",))["spearman"] == pytest.approx(1)
    with pytest.warns(UserWarning, match="all 3 predictions are 1: no correlation"):
        assert regression_metrics([1.0] * 3, [0.0, 1.0, 2.0], also=("spearman",))["spearman"] == 0


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


def test_uniform_guessing_of_questions_with_unlike_numbers_of_answers() -> None:
    answers = [2, 4, 4]
    same = [[[0.0, 0.0]] * count + [[-math.inf, -math.inf]] * (4 - count) for count in answers]
    found = chance_levels(answers)
    got = choice_metrics(same, [0, 0, 0])
    assert (found["nll"], found["nll_norm"]) == pytest.approx((got["nll"], got["nll_norm"]))
    assert found["accuracy"] == found["accuracy_norm"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert chance_levels([]) == {}


def test_choices_that_are_not_numbers() -> None:
    with pytest.warns(UserWarning, match="non-finite"):
        got = choice_metrics([[[math.nan, math.nan], [-1, -1]], [[-1, -1], [-2, -2]]], [0, 0])
    assert all(math.isnan(value) for value in got.values())
    with pytest.raises(ValueError, match="a label is no choice of its question"):
        choice_metrics([[[-1, -1], [-math.inf, -math.inf]]], [1])
    with pytest.raises(ValueError, match="expected scores"):
        choice_metrics([[-1, -1]], [1])


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_of_a_task_is_in_the_registry(name: str) -> None:
    assert set(kind_of(TASKS[name]).facts.metric_names(TASKS[name])) <= METRICS.keys()


def test_metrics_for_people() -> None:
    shown = METRICS["accuracy"].shown, METRICS["nll"].shown, METRICS["explained"].shown
    assert [show(0.12345) for show in shown] == ["12.3", "0.123", "12.35"]
    assert METRICS["accuracy"].shown(0.005, "+") == "+0.5"
    assert {METRICS["nll"].shown(value) for value in (None, math.nan, math.inf)} == {"not finite"}
    assert METRICS["accuracy"].heading == METRICS["accuracy"].column == "accuracy %"
    assert (METRICS["nll"].heading, METRICS["nll"].column) == ("neg. log-likelihood", "nll")
    assert METRICS["accuracy_norm"].column == "accuracy per char. %"
    assert (METRICS["nll"].axis, METRICS["f1"].axis) == ("neg. log-likelihood, less is better", "F1, %")
    assert METRICS["unanswered"].axis == "unanswered, %, less is better"


def test_a_metric_that_is_in_no_registry_is_shown_last() -> None:
    assert [metric.name for metric in in_order({"bleu", "nll", "accuracy"})] == ["accuracy", "nll", "bleu"]
    table = score_table("lora", {"merged": {"bleu": 0.25, "accuracy": 0.5}}, None)
    assert (table.headers, table.rows) == (["form", "accuracy %", "bleu"], [["lora", "50.0", "0.250"]])
    assert not metric_named("bleu").lower_is_better


def test_what_is_written_is_right_wrong_or_none_of_the_choices() -> None:
    scores = np.zeros((3, 2, 3))
    scores[0, 1, 2] = scores[1, 0, 2] = 1
    found = choice_metrics(scores, [1, 1, 1])
    assert (found["accuracy_generated"], found["unanswered"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize(("examples", "labels"), [(1, 1), (9, 2), (200, 5)])
def test_several_labels_against_scikit_learn_and_a_loop(examples: int, labels: int) -> None:
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


def test_a_logit_of_0_predicts_no_label() -> None:
    assert multi_label_metrics([[0.0, 1.0]], [[0, 1]])["micro_f1"] == 1
    assert multi_label_metrics([[0.0, 1.0]], [[1, 1]])["micro_f1"] == pytest.approx(2 / 3)


def test_several_labels_that_are_not_numbers() -> None:
    with pytest.warns(UserWarning, match="non-finite logits in 1 of 2 rows"):
        got = multi_label_metrics([[math.nan, 1.0], [1.0, 0.0]], [[1, 0], [0, 0]])
    assert all(map(math.isnan, got.values()))
    assert multi_label_metrics([[1000.0, -1000.0]], [[0, 1]])["nll"] == 1000.0
    for wrong in ([1, 0], [[1, 0, 0]]):
        with pytest.raises(ValueError, match="expected logits and labels"):
            multi_label_metrics([[1.0, 0.0]], wrong)


@pytest.mark.parametrize("classes", [2, 5])
def test_macro_f1_against_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(60, classes)), rng.integers(classes, size=60)
    expected = np.mean([f1_score(labels == k, logits.argmax(1) == k, zero_division=0) for k in range(classes)])
    assert classification_metrics(logits, labels, also=("macro_f1",))["macro_f1"] == pytest.approx(expected)


def test_what_rounds_to_zero_has_no_sign_but_at_the_end_of_an_interval() -> None:
    metric = METRICS["accuracy"]
    assert [metric.difference(value) for value in (-0.0004, 0.0004, 0.0, -0.0006, 0.1)] == [
        "0.0",
        "0.0",
        "0.0",
        "-0.1",
        "+10.0",
    ]
    assert (metric.shown(-0.0004), metric.shown(-0.0004, "+"), metric.difference(None)) == ("0.0", "-0.0", NOT_FINITE)
    assert METRICS["nll"].difference(-0.0004) == "0.000"
