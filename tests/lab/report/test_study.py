"""A study's answers and tables on known scores, and whether its runs have converged."""

import math
from typing import Any

import pandas as pd
import pytest
from scipy.stats import t, ttest_rel

from aurora_lora.lab.report.study import (
    Answer,
    answers,
    chosen_values,
    convergence_note,
    missing_note,
    study_tables,
)
from aurora_lora.lab.report.tables import half_interval, interval, p_value
from make.tables import study_page

FIRST, SECOND = [0.82, 0.84, 0.81], [0.80, 0.81, 0.80]


def setting(name: str, by_form: dict[str, list[float | None]], deployed: str) -> dict[str, Any]:
    return {
        "name": name,
        "chosen": {"training.learning_rate": 0.005},
        "validation": 0.8,
        "deployed": deployed,
        "metric": "accuracy",
        "trials": [],
        "seeds": [0, 1, 2],
        "by_form": {
            form: {"accuracy": {"scores": scores, "mean": 0.8, "std": 0.01}} for form, scores in by_form.items()
        },
        "params": {"adapter": 1234, "head": 2, "total": 9},
        "train_s": [10.0, 11.0, 12.0],
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    side = {"setting": "AuroRA", "form": None}
    questions = [
        {"ask": "Better", "first": side, "second": {"setting": "LoRA", "form": None}},
        {"ask": "Static", "first": {"setting": "AuroRA", "form": "static"}, "second": side},
        {"ask": "No such form", "first": {"setting": "LoRA", "form": "static"}, "second": side},
    ]
    return {
        "study": {"name": "s", "tuning": {"budget": 4}, "seeds": [0, 1, 2], "questions": questions},
        "settings": [
            setting("LoRA", {"merged": SECOND}, "merged"),
            setting("AuroRA", {"static": [None, 0.7, None], "calibrated": FIRST}, "calibrated"),
        ],
    }


def test_intervals_and_p_values_are_students() -> None:
    values = [0.80, 0.81, 0.82]
    assert interval(values) == pytest.approx(t.interval(0.95, 2, loc=0.81, scale=0.01 / 3**0.5))
    assert all(math.isnan(one) for one in (half_interval([1.0]), *interval([1.0]), p_value([1.0])))
    assert interval([0.25, 0.25]) == (0.25, 0.25)
    assert p_value(values) == pytest.approx(ttest_rel(values, [0.0] * 3).pvalue)
    assert (p_value([0.0, 0.0]), p_value([0.25, 0.25])) == (1, 0)


def test_answers_are_paired_differences(summary: dict[str, Any]) -> None:
    better, static = answers(summary)
    expected = ttest_rel(FIRST, SECOND).confidence_interval()
    assert (better.first, better.second) == ("AuroRA, calibrated", "LoRA, merged")
    assert better.difference == pytest.approx(0.02)
    assert better.interval == pytest.approx((expected.low, expected.high))
    assert len(better.by_seed) == 3
    assert (static.difference, len(static.by_seed)) == (pytest.approx(0.7 - 0.84), 1)
    assert static.cells() == ("-14.0 (1 of 3 seeds)", "", "not known: one seed")
    assert better.cells()[0] == "+2.0"
    (without,) = answers(summary, without=1)
    assert (without.by_seed, without.seeds) == ({0: pytest.approx(0.02), 2: pytest.approx(0.01)}, 2)


def test_what_a_merge_costs_is_asked_of_the_same_runs(summary: dict[str, Any]) -> None:
    """Each form has a rate of its own; with `same_runs` those of the first form's are taken for both."""
    question = summary["study"]["questions"][1]
    question["first"], question["second"] = ({"setting": "AuroRA", "form": form} for form in ("calibrated", "static"))
    (_, by_own_choice) = answers(summary)
    assert by_own_choice.difference == pytest.approx(FIRST[1] - 0.7)
    of_them = {"calibrated": [0.8, 0.8, 0.8], "static": [0.7, 0.6, 0.8]}
    by_form = {form: {"accuracy": {"scores": scores}} for form, scores in of_them.items()}
    summary["settings"][1]["by_choice"] = {"calibrated": by_form}
    assert answers(summary)[1] == by_own_choice
    question["same_runs"] = True
    cost = answers(summary)[1]
    assert (cost.difference, len(cost.by_seed)) == (pytest.approx(0.1), 3)
    assert (cost.first, cost.second) == ("AuroRA, calibrated", "AuroRA, static in the same runs")
    del summary["settings"][1]["by_choice"]  # all forms have the deployed one's choice
    assert answers(summary)[1].difference == by_own_choice.difference


def between(low: float, high: float, metric: str = "accuracy", margin: float | None = None) -> Answer:
    """An answer with such an interval, from three seeds."""
    mean, apart = (low + high) / 2, (high - low) / 2 / t.ppf(0.975, 2) * 3**0.5
    return Answer("?", "a", "b", metric, {0: mean - apart, 1: mean, 2: mean + apart}, margin)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (-0.009, 0.008, 1.0, "equivalent within 1 point"),
        (-0.011, 0.008, 1.0, "no significant difference"),
        (-0.008, 0.011, 1.0, "no significant difference"),
        (-0.004, 0.001, 0.5, "equivalent within 0.5 points"),
        (-0.004, 0.001, None, "no significant difference"),
        (0.0, 0.0, 1.0, "equivalent within 1 point"),
        (0.0, 0.0, None, "no significant difference"),
        (0.01, 0.03, None, "better"),
        (-0.03, -0.01, None, "worse"),
        (0.002, 0.008, 1.0, "better, within 1 point"),
        (0.002, 0.012, 1.0, "better"),
        (-0.008, -0.002, 1.0, "worse, within 1 point"),
    ],
)
def test_a_verdict_is_about_the_whole_interval(low: float, high: float, margin: float | None, verdict: str) -> None:
    assert between(low, high, margin=margin).verdict == verdict


def test_the_margin_of_a_question(summary: dict[str, Any]) -> None:
    for one in summary["settings"]:
        for form in one["by_form"].values():
            form["nll"] = {"scores": [0.5, 0.6, 0.5], "mean": 0.5, "std": 0.1}
            form["accuracy_norm"] = form["nll"]
    assert [one.margin for one in answers(summary)] == [1.0, 1.0]  # in percent: 1 point if it is not named
    summary["study"]["questions"][0]["margin"] = 3.0
    assert [one.margin for one in answers(summary)] == [3.0, 1.0]
    assert [one.margin for one in answers(summary, "accuracy_norm")] == [3.0, 1.0]  # in percent as well
    assert [one.margin for one in answers(summary, "nll")] == [None, None]  # the margin is one of accuracy
    for one in summary["settings"]:
        one["metric"] = "nll"
    assert [one.margin for one in answers(summary)] == [3.0, None]
    assert [one.margin for one in answers(summary, "accuracy")] == [1.0, 1.0]


def test_the_page_and_the_tables(summary: dict[str, Any]) -> None:
    page = study_page(summary)
    assert "| Better | AuroRA, calibrated | LoRA, merged | +2.0 |" in page
    assert "| AuroRA | 1,234 | lr 0.005 | calibrated | 82.3 ± 1.5 | 3 | 11 |" in page
    summary["settings"][1]["most_params"] = 1300  # as LoRA-drop's, which differ by seed
    assert "| AuroRA | 1,234 to 1,300 | lr" in study_page(summary)
    differences, scores = study_tables(summary)
    assert (len(scores.rows), len(differences.rows)) == (3, 2)


def test_scores_that_are_not_finite(summary: dict[str, Any]) -> None:
    lora, aurora = summary["settings"]
    lora["by_form"]["merged"]["accuracy"] = {"scores": [None] * 3, "mean": None, "std": None}
    page = study_page(summary)
    assert "| LoRA | 1,234 | lr 0.005 | merged | not finite | 3 | 11 |" in page
    assert "| static | 70.0 (1 of 3 finite) |" in page
    assert "| Better |" not in page  # nothing to compare
    assert len(study_tables(summary)) == 2
    assert aurora["by_form"]["static"]["accuracy"]["scores"] == [None, 0.7, None]


@pytest.mark.parametrize(
    ("own", "value", "shown"),
    [
        (None, 1e-3, "lr 0.001, lowest"),
        (None, 5e-3, "lr 0.005"),
        ({"training.learning_rate": [1e-5, 5e-5, 1e-3]}, 1e-3, "lr 0.001, highest"),
        ({"training.learning_rate": [1e-3]}, 1e-3, "lr 0.001, the only one"),
        ({"training.learning_rate": {"low": 1e-3, "high": 1.0, "log": True}}, 1e-3, "lr 0.001"),
    ],
)
def test_a_choice_at_the_edge_is_named(summary: dict[str, Any], own: Any, value: float, shown: str) -> None:
    summary["study"]["tuning"]["space"] = {"training.learning_rate": [1e-3, 5e-3, 1e-2]}
    summary["study"]["settings"] = [{"name": "LoRA", "space": own}]
    lora = {**summary["settings"][0], "chosen": {"training.learning_rate": value}}
    assert chosen_values(summary, lora, "merged") == shown


def test_the_level_of_uniform_guessing(summary: dict[str, Any]) -> None:
    for one in summary["settings"]:
        for form in one["by_form"].values():
            form["nll"] = {"scores": [0.5, 0.6, 0.5], "mean": 0.5, "std": 0.1}
    assert "uniform guessing" not in study_page(summary)  # of a task that is not known
    summary["study"]["base"] = {"task": {"name": "siqa"}}  # a summary of an earlier version
    assert "| uniform guessing |  |  |  | 33.3 | 1.099 |  |  |" in study_page(summary)
    summary["settings"][0]["chance"] = {"accuracy": 0.25, "nll": 1.4}
    assert "| uniform guessing |  |  |  | 25.0 | 1.400 |  |  |" in study_page(summary)


def test_what_has_no_result_is_told(summary: dict[str, Any]) -> None:
    """A setting that failed on a seed, one that failed at every rate, and one whose final runs all failed."""
    assert missing_note(summary) == "Not answered: No such form."
    questions = summary["study"]["questions"]
    del questions[2]
    assert missing_note(summary) == ""
    lora, aurora = summary["settings"]
    aurora["trials"] = [{"values": {}, "validation": 0.8}, {"values": {}, "validation": None}]
    assert missing_note(summary) == "1 tuning run gave no score."
    lora["seeds"], lora["train_s"] = [0, 2], [10.0, 12.0]
    lora["by_form"]["merged"]["accuracy"] = {"scores": [0.80, 0.82], "mean": 0.81, "std": 0.014}
    (better, _), page = answers(summary), study_page(summary)
    expected = ttest_rel([0.82, 0.81], [0.80, 0.82]).confidence_interval()
    assert better.interval == pytest.approx((expected.low, expected.high))
    assert "| Better | AuroRA, calibrated | LoRA, merged | +0.5 (2 of 3 seeds) |" in page
    assert "| LoRA | 1,234 | lr 0.005 | merged | 81.0 ± 1.4 (2 of 3 seeds) | 2 | 11 |" in page
    assert "| calibrated | 82.3 ± 1.5 | 3 | 11 |" in page
    summary["settings"] = [
        aurora,
        {**lora, "name": "no seeds", "seeds": [], "train_s": [], "by_form": {}, "metric": None},
    ]
    summary["study"]["settings"] = [{"name": name} for name in ("LoRA", "AuroRA", "no seeds")]
    told = "No result: LoRA, no seeds. Not answered: Better. 5 tuning runs gave no score."
    assert missing_note(summary) == told
    assert study_tables(summary)[-1].note.startswith(told)
    assert told in study_page(summary)


# ---------------------------------------------------------------- convergence


def curves(*settings: Any, metric: str = "accuracy", every: float = 1.0) -> pd.DataFrame:
    """Runs with validation scores, by setting and seed."""
    rows = [
        {
            "setting": place,
            "seed": seed,
            "selected_by": metric,
            "result": {
                "epochs": [{"epoch": every * n, "validation": {metric: one}} for n, one in enumerate(scores, start=1)]
            },
        }
        for place, several in enumerate(settings)
        for seed, scores in enumerate(several)
    ]
    return pd.DataFrame(rows)


def test_runs_that_still_gain_are_counted() -> None:
    rising = [[0.5, 0.70], [0.69, 0.71], [0.60, 0.72]]  # spread 0.01; gains 0.20, 0.02, 0.12
    flat = [[0.700, 0.705], [0.80, 0.81]]  # spread 0.07
    told = convergence_note(curves(rising, flat))
    assert told.startswith("Not converged: 3 of 5 final runs still gain more in the last epoch than")
    assert "The median gain is 2.0 points of accuracy, the spread 1.0" in told
    assert convergence_note(curves(flat)).startswith("Converged: none of 2 final runs still gains more")


def test_of_a_loss_less_is_a_gain_and_a_gain_is_per_epoch() -> None:
    losses = [[0.50, 0.46], [0.49, 0.43]]  # spread 0.021; gains 0.04 and 0.06
    assert "Not converged: 2 of 2" in convergence_note(curves(losses, metric="nll"))
    assert "Converged: none of 2" in convergence_note(curves(losses))  # of accuracy it is a loss
    assert "Not converged: 1 of 2" in convergence_note(curves(losses, metric="nll", every=2))


def test_of_several_evaluations_an_epoch_the_gain_is_that_of_the_epoch() -> None:
    """That between two of them, times their number, would be their noise as well."""
    flat = [[0.70, 0.70, 0.70, 0.70, 0.71], [0.70, 0.73, 0.74, 0.73, 0.72]]
    told = convergence_note(curves(flat, every=0.25))  # spread 0.007; times four: 0.04 and -0.04
    assert told.startswith("Not converged: 2 of 2")
    assert "The median gain is 1.5 points of accuracy" in told  # 0.01 and 0.02
    steps = [[0.5, 0.6], [0.5, 0.7]]
    assert "The median gain is 15.0 points" in convergence_note(curves(steps, every=0.999))
    unknown = ([[0.5, 0.6]], [[0.5], [0.6]], [[0.5, None], [None, 0.6]], [[], []])
    for one in (curves(flat, every=0.2), *map(curves, unknown)):
        assert convergence_note(one).startswith("Whether the runs have converged is not known")
