"""The figure of docs/worth.md and the tables of docs/evidence.md."""

import re
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.files import read_json
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.report.study import answers
from make.worth import (
    CASES,
    PANELS,
    RATES,
    ROWS,
    answered,
)

ROOT = Path(__file__).parents[2]
STUDIES = sorted({study for asked in CASES.values() for study in asked} | set(RATES) | set(ROWS))


@pytest.mark.parametrize("name", STUDIES)
def test_each_question_and_setting_is_one_of_its_study(name: str) -> None:
    study = load_study(ROOT / "recipes" / "studies" / f"{name}.yaml")
    questions = {question.ask for question in study.questions}
    assert {ask for case in CASES.values() for ask in case.get(name, ())} <= questions
    assert name not in ROWS or name == "ranks-converged" or set(PANELS.values()) <= questions
    assert set(RATES.get(name, ())) <= {one.name for one in study.settings}


def test_what_differs_not_significantly_is_called_no_equivalence() -> None:
    half = "Half of the weights, ranks by the gradients: above LoRA r=8"
    everywhere = ("Is r=1 everywhere above LoRA r=8, both with LoRA's start", "Is AuroRA r=2 everywhere above LoRA r=8")
    found = [
        one
        for study in ("ranks-movie-rating", "ranks-digits", "ranks-cifar10", "ranks-wikihow-goal")
        for one in answers(read_json(ROOT / "results" / "studies" / study / "study.json"))
        if one.ask in (half, *everywhere)
    ]
    assert [one.verdict for one in found] == ["no significant difference"] * 12
    ends = [100 * end for one in found for end in one.interval]
    low, high = f"{min(ends):+.1f}", f"{max(ends):+.1f}"
    for page in ("worth", "evidence"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert re.search(rf"reach (from|to) {low} (to|and) \{high}\b", text), page
    assert "computed afterwards" in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def summary(first: list[float], second: list[float], *asked: str) -> dict[str, Any]:
    def setting(name: str, scores: list[float]) -> dict[str, Any]:
        by_form = {"merged": {"captured": {"scores": scores}}}
        return {
            "name": name,
            "deployed": "merged",
            "metric": "captured",
            "seeds": [0, 1, 2],
            "by_form": by_form,
            "params": None,
            "train_s": [1.0] * 3,
        }

    sides = [{"setting": name, "form": None} for name in ("ours", "theirs")]
    study = {"questions": [{"ask": ask, "first": sides[0], "second": sides[1]} for ask in asked]}
    return {"study": study, "settings": [setting("ours", first), setting("theirs", second)]}


def test_what_is_significant_by_chance_is_none_after_correction() -> None:
    asked = CASES["same rank"]["captured-effect"]
    barely = summary([0.53, 0.50, 0.52], [0.49, 0.48, 0.49], *asked)  # p = 0.037 each, of six: still all of them
    assert answered({"captured-effect": barely}, "same rank").endswith("better in 6, worse in 0.")
    one = {"setting": "ours", "form": None}
    barely["study"]["questions"][1:] = [{"ask": ask, "first": one, "second": one} for ask in asked[1:]]
    found = answered({"captured-effect": barely}, "same rank")
    assert found.endswith(
        "the first is better in 1, worse in 0. Corrected, with a false discovery rate of 5% (†): "
        "better in 0, worse in 0."
    )
    assert found.count("†") == 1
