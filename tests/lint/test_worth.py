"""The figure of docs/worth.md and the tables of docs/evidence.md."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from aurora_lora.lab.experiments.study import load_study
from make.worth import (
    CASES,
    PANELS,
    RATES,
    ROWS,
    answered,
    by_epoch,
    default_at_the_same_rank,
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


def test_the_default_beside_lora_over_all_pairs_of_a_study() -> None:
    """The mean over the pairs comes first, by seed; AuroRA without the skip is left out, and so are other questions."""
    asked = CASES["same rank"]["ranks-short"][:2]
    study = summary([0.5, 0.51, 0.52], [0.4, 0.42, 0.41], *asked, "another")
    without = {**study["settings"][0], "name": "ours without skip"}
    study["settings"].append(without)
    study["study"]["questions"].append(
        {"ask": CASES["same rank"]["ranks-short"][2], "first": {"setting": without["name"], "form": None}}
        | {"second": {"setting": "theirs", "form": None}}
    )
    other = {**study["settings"][1], "name": "more", "by_form": {"merged": {"captured": {"scores": [0.5, 0.53, 0.51]}}}}
    study["settings"].append(other)
    study["study"]["questions"][1]["second"] = {"setting": "more", "form": None}
    found = default_at_the_same_rank({"ranks-short": study}).splitlines()
    mean = [(0.1 + 0.0) / 2, (0.09 - 0.02) / 2, (0.11 + 0.01) / 2]
    half = 4.302652729 * stdev(mean) / 3**0.5
    low, high = (f"{100 * (fmean(mean) + sign * half):+.1f}" for sign in (-1, 1))
    assert found[2] == f"| ranks-short, captured % | 2 | {100 * fmean(mean):+.1f} | {low} to {high} | better |"
    assert found[-1] == (
        "Pairs: 2; better in 1, worse in 0, equivalent within 1 point in 0, no significant difference in 1."
    )


def test_differences_over_the_epochs() -> None:
    scores = {"a": ((0.5, 0.6), (0.52, 0.6)), "b": ((0.4, 0.55), (0.44, 0.55))}
    runs = [
        {"setting": name, "seed": seed, "selected_by": "captured", "result": {"epochs": [
            {"epoch": at, "validation": {"captured": one}} for at, one in zip((2.0, 4.0), of_seed, strict=True)
        ]}}
        for name, by_seed in scores.items()
        for seed, of_seed in enumerate(by_seed)
    ]  # fmt: skip
    found = pd.DataFrame(runs)
    rows = by_epoch(found, {"a": ["b"]}).splitlines()
    assert rows[0] == "| first | second | epoch 2 | epoch 4 | change in the last |"
    assert rows[2] == "| a | b | +9.0 (-3.7 to +21.7) | +5.0 (+5.0 to +5.0) | -4.0 (-16.7 to +8.7) |"


def test_every_pair_of_the_same_ranks_is_asked() -> None:
    """Of the settings that a study has, AuroRA and LoRA that differ in the method alone, but for the rates too high."""
    pairs = 0
    for path in sorted((ROOT / "results" / "studies").glob("*/study.json")):
        summary, study = json.loads(path.read_text()), path.parent.name
        names = {setting["name"] for setting in summary["settings"]}
        questions = summary["study"]["questions"]
        asked = {(one["first"]["setting"], one["second"]["setting"]): one["ask"] for one in questions}
        for aurora in names if study not in CASES["high rates"] else ():
            is_old = not study.startswith(("ranks-", "starts-"))  # their default has no skip
            default = aurora.removesuffix(" without skip") if is_old else aurora
            lora = default.replace("AuroRA ", "LoRA ")
            if aurora.startswith("AuroRA ") and lora in names:
                assert asked[aurora, lora] in CASES["same rank"][study], (study, aurora)
                pairs += 1
    assert pairs >= 30
