"""The figure of docs/worth.md and the tables of docs/evidence.md."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.report.runs import load_sections
from make.worth import (
    CASES,
    EDGE,
    FEWER_WEIGHTS,
    PANELS,
    RATES,
    ROWS,
    SETTLED,
    answered,
    beyond_the_best,
    by_epoch,
    default_at_the_same_rank,
    fewer_weights,
    main_answers,
    without_seed,
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


def test_a_study_that_is_not_there_is_left_out() -> None:
    asked = CASES["same rank"]["captured-effect"][0]
    one = summary([0.5, 0.51, 0.52], [0.4, 0.42, 0.41], asked)
    found = answered({"captured-effect": one}, "same rank").splitlines()
    assert len(found) == 5
    assert found[2].startswith("| captured-effect, captured % | ours, merged | theirs, merged | +10.0 | ")
    assert found[2].endswith(" | better † |")
    assert found[-1] == (
        "Intervals: 1, not corrected for their number; the first is better in 1, worse in 0. Corrected, with a false "
        "discovery rate of 5% (†): better in 1, worse in 0."
    )


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


def test_what_a_budget_buys_in_every_study() -> None:
    first, *_, last = FEWER_WEIGHTS.values()
    better = summary([0.5, 0.51, 0.52], [0.45, 0.47, 0.46], first)
    rows = fewer_weights(
        {"ranks-short": better, "ranks-digits": summary([0.5, 0.4, 0.6], [0.5] * 3, last)}
    ).splitlines()
    assert rows[0] == "| points | captured effect, 2 epochs | digits, accuracy |"
    assert rows[2].endswith(" | **+5.0** |  |")
    assert rows[-1].endswith(" |  | 0.0 |")


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


def test_the_figure_has_a_row_for_each_study_that_is_there() -> None:
    _, first, _, third = PANELS.values()
    better = summary([0.5, 0.51, 0.52], [0.45, 0.47, 0.46], first)  # +5.0 (2.5 to 7.5)
    far = summary([0.5, 0.51, 0.52], [0.4, 0.45, 0.39], first, third)  # beyond the edge
    figure = main_answers({"ranks-short": better, "ranks-digits": far, "digits": better})
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [ROWS["ranks-short"], ROWS["ranks-digits"]]
    points = [
        [(*line.get_xydata()[0], line.get_marker()) for line in ax.lines if line.get_linestyle() == "None"]
        for ax in figure.axes
    ]
    assert [marker for _, _, marker in points[1]] == ["^", ">", "^"]
    assert points[1][0][:2] == pytest.approx((5.0, 0))
    assert points[1][1][:2] == (EDGE, 1)
    assert points[0] == points[2] == []
    assert len(points[3]) == 2


def tuned(scores: dict[str, dict[float, float]]) -> dict[str, Any]:
    return {
        "settings": [
            {
                "name": name,
                "metric": "captured",
                "trials": [
                    {"values": {"training.learning_rate": rate}, "validation": score} for rate, score in rates.items()
                ],
            }
            for name, rates in scores.items()
        ]
    }


def test_scores_at_every_rate_that_was_tried() -> None:
    lora, aurora, unskipped, *others = RATES["ranks-converged"]
    study = tuned({aurora: {0.02: 0.2, 0.01: 0.4}, lora: {0.01: 0.3}, unskipped: {}, "another": {0.01: 0.5}})
    second = tuned({name: {} for name in others})["settings"]
    rows = beyond_the_best({"ranks-converged": {"settings": [*study["settings"], *second]}}).splitlines()
    assert rows[0] == "| study | setting | 0.01 | 0.02 |"
    assert rows[2:4] == [
        f"| ranks-converged, captured % | {lora} | 30.0 |  |",
        f"| ranks-converged, captured % | {aurora} | 40.0 | 20.0 |",
    ]


def test_answers_that_are_others_without_a_seed() -> None:
    by_one_seed = summary([0.3, 0.52, 0.51], [0.5, 0.42, 0.41], "held back by seed 0")  # -20 on it, +10 on the others
    alike = summary([0.5, 0.51, 0.52], [0.4, 0.41, 0.42], "alike")
    studies = {"one": by_one_seed, "two": alike, "three": alike}
    found = without_seed(studies, ("one", "two"), 0).splitlines()
    assert [line.split(" | ")[0] for line in found[2:-2]] == ["| one"]
    assert found[2].endswith(" | +10.0 | +10.0 to +10.0 |")
    assert found[-1] == "1 of 2 answers."


@pytest.mark.parametrize("page", ["README.md", "docs/worth.md"])
def test_the_prose_says_how_often_the_same_rank_differs(page: str) -> None:
    evidence = (ROOT / "docs" / "evidence.md").read_text()
    table = evidence[evidence.index("<!-- answers same rank") : evidence.index("<!-- end answers same rank")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.count("|") == 7]
    better = sorted(difference.lstrip("+") for *_, difference, _, verdict in rows if verdict.startswith("better"))
    worse = [row for row in rows if row[-1].startswith("worse")]
    without_skip = [row for row in worse if "without skip" in row[1]]
    with_skip = [row for row in worse if row not in without_skip]
    by_likelihood = [row for row in with_skip if "neg. log-likelihood" in row[0]]
    slightly = [row for row in with_skip if row[3] == "-0.1"]
    (larger,) = [row for row in with_skip if row not in (*by_likelihood, *slightly)]
    (count,) = re.findall(r"Intervals: (\d+)", table)
    text = " ".join((ROOT / page).read_text().split())
    assert f"[{count} comparisons]" in text
    assert f"in three of {count} comparisons" in (ROOT / "CHANGELOG.md").read_text()
    in_words = {1: "one", 2: "two", 3: "three", 21: "twenty-one"}
    gains = f"{', '.join(better[:-1])} and {better[-1]}"
    assert (
        f"better in {in_words[len(better)]}, by {gains} points, and worse in {len(worse)}: "
        f"{in_words[len(without_skip)]} without the skip, {in_words[len(slightly)]} by 0.1 points, "
        f"one by {larger[3].lstrip('-')} points, and "
        f"{in_words[len(by_likelihood)]} in the likelihood alone" in text
    )


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


def test_what_is_committed_is_in_the_page() -> None:
    studies = ROOT / "results" / "studies"
    summaries = {
        name: json.loads((studies / name / "study.json").read_text()) for name in STUDIES if (studies / name).exists()
    }
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert default_at_the_same_rank(summaries) in page
    assert fewer_weights(summaries) in (ROOT / "docs" / "worth.md").read_text()
    (converged,) = load_sections([studies / "ranks-converged" / "study.json"])
    assert by_epoch(converged.scores, SETTLED) in (ROOT / "docs" / "studies" / "ranks-converged.md").read_text()
    for case in CASES:
        assert answered(summaries, case) in page
    assert beyond_the_best(summaries) in page
    assert without_seed(summaries, ("ranks-short", "ranks-converged"), 0) in page
