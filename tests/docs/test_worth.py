"""The tables of docs/worth.md."""

import json
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.lab.experiments.study import load_study
from make.worth import CASES, PAIRS, answered, beyond_the_best

ROOT = Path(__file__).parents[2]
STUDIES = sorted({study for asked in CASES.values() for study in asked} | set(PAIRS))


@pytest.mark.parametrize("name", STUDIES)
def test_each_question_and_setting_is_one_of_its_study(name: str) -> None:
    study = load_study(ROOT / "recipes" / "studies" / f"{name}.yaml")
    questions = {question.ask for question in study.questions}
    assert {ask for case in CASES.values() for ask in case.get(name, ())} <= questions
    assert {setting for pair in PAIRS.get(name, ()) for setting in pair} <= {one.name for one in study.settings}


def summary(first: list[float], second: list[float]) -> dict[str, Any]:
    def setting(name: str, scores: list[float]) -> dict[str, Any]:
        by_form = {"merged": {"captured": {"scores": scores}}}
        return {"name": name, "deployed": "merged", "metric": "captured", "seeds": [0, 1, 2], "by_form": by_form}

    asked, _ = CASES["same rank"]["captured-effect"]
    sides = [{"setting": name, "form": None} for name in ("ours", "theirs")]
    study = {"questions": [{"ask": asked, "first": sides[0], "second": sides[1]}]}
    return {"study": study, "settings": [setting("ours", first), setting("theirs", second)]}


def test_a_study_that_is_not_there_is_left_out() -> None:
    found = answered({"captured-effect": summary([0.5, 0.51, 0.52], [0.4, 0.42, 0.41])}, "same rank").splitlines()
    assert len(found) == 3
    assert found[-1].startswith("| captured-effect, captured % | ours, merged | theirs, merged | +10.0 | ")
    assert found[-1].endswith(" | better |")


def line(setting: str, rate: float, seed: int, score: float) -> dict[str, Any]:
    folder = setting.lower().replace(" ", "-")
    return {
        "run": f"{folder}/learning_rate={rate}/seed{seed}",
        "seed": seed,
        "recipe": {"training": {"learning_rate": rate}},
        "metric": {
            "name": "captured",
            "validation_by_form": {"dynamic": {"captured": 0.0}, "calibrated": {"captured": score}},
            "selected_by": {"form": "calibrated"},
        },
    }


def test_rates_are_those_of_the_seed_that_was_tuned_on() -> None:
    ((lora, aurora),) = PAIRS["ranks-short"]
    runs = [line(lora, 0.01, 0, 0.3), line(lora, 0.01, 1, 0.9), line(aurora, 0.01, 0, 0.4), line(aurora, 0.02, 0, 0.2)]
    rows = beyond_the_best({"ranks-short": runs}).splitlines()
    assert rows[0] == "| study | setting | 0.01 | 0.02 |"
    assert rows[2:] == [
        f"| ranks-short, captured % | {lora} | 30.0 |  |",
        f"| ranks-short, captured % | {aurora} | 40.0 | 20.0 |",
    ]


def test_what_is_committed_is_in_the_page() -> None:
    studies = ROOT / "results" / "studies"
    summaries = {
        name: json.loads((studies / name / "study.json").read_text()) for name in STUDIES if (studies / name).exists()
    }
    page = (ROOT / "docs" / "worth.md").read_text()
    for case in CASES:
        assert answered(summaries, case) in page
