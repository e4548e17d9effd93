"""The figure of docs/worth.md and the tables of docs/evidence.md."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.lab.experiments.study import load_study
from make.cases import CASES
from make.worth import EDGE, PAIRS, PANELS, ROWS, answered, beyond_the_best, main_answers, without_seed

ROOT = Path(__file__).parents[2]
STUDIES = sorted({study for asked in CASES.values() for study in asked} | set(PAIRS) | set(ROWS))


@pytest.mark.parametrize("name", STUDIES)
def test_each_question_and_setting_is_one_of_its_study(name: str) -> None:
    study = load_study(ROOT / "recipes" / "studies" / f"{name}.yaml")
    questions = {question.ask for question in study.questions}
    assert {ask for case in CASES.values() for ask in case.get(name, ())} <= questions
    assert name not in ROWS or name == "ranks-converged" or set(PANELS.values()) <= questions
    assert {setting for pair in PAIRS.get(name, ()) for setting in pair} <= {one.name for one in study.settings}


def summary(first: list[float], second: list[float], *asked: str) -> dict[str, Any]:
    def setting(name: str, scores: list[float]) -> dict[str, Any]:
        by_form = {"merged": {"captured": {"scores": scores}}}
        return {"name": name, "deployed": "merged", "metric": "captured", "seeds": [0, 1, 2], "by_form": by_form}

    sides = [{"setting": name, "form": None} for name in ("ours", "theirs")]
    study = {"questions": [{"ask": ask, "first": sides[0], "second": sides[1]} for ask in asked]}
    return {"study": study, "settings": [setting("ours", first), setting("theirs", second)]}


def test_a_study_that_is_not_there_is_left_out() -> None:
    asked = CASES["same rank"]["captured-effect"][0]
    one = summary([0.5, 0.51, 0.52], [0.4, 0.42, 0.41], asked)
    found = answered({"captured-effect": one}, "same rank").splitlines()
    assert len(found) == 5
    assert found[2].startswith("| captured-effect, captured % | ours, merged | theirs, merged | +10.0 | ")
    assert found[2].endswith(" | better |")
    assert found[-1] == "Intervals: 1, not corrected for their number; the first is better in 1, worse in 0."


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
    lora, aurora = PAIRS["ranks-converged"][0]
    study = tuned({aurora: {0.02: 0.2, 0.01: 0.4}, lora: {0.01: 0.3}, "another": {0.01: 0.5}})
    second = tuned({name: {} for pair in PAIRS["ranks-converged"][1:] for name in pair})["settings"]
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
    assert len(with_skip) == len(by_likelihood) + len(slightly)
    (count,) = re.findall(r"Intervals: (\d+)", table)
    text = " ".join((ROOT / page).read_text().split())
    assert f"[{count} comparisons]" in text
    in_words = {1: "one", 2: "two", 10: "ten"}
    assert (
        f"better in {in_words[len(better)]}, by {' and '.join(better)} points, and worse in {len(worse)}: "
        f"{in_words[len(without_skip)]} without the skip, {in_words[len(slightly)]} by 0.1 points, and "
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
            default = aurora if study.startswith("ranks-") else aurora.removesuffix(" without skip")  # older studies'
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
    for case in CASES:
        assert answered(summaries, case) in page
    assert beyond_the_best(summaries) in page
    assert without_seed(summaries, ("ranks-short", "ranks-converged"), 0) in page
