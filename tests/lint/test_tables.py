"""Tables and the figure of calibration of docs/, on known records."""

from typing import Any

import pytest

from make.calibration import forms_figure, forms_table
from make.tables import reproduced_table, versions_table


def test_versions_table() -> None:
    old = {"python": "3.11.7", "torch": "2.6.0", "peft": "0.21.0", "transformers": "5.0.0", "numpy": "2.0.0"}
    nothing: dict[str, Any] = {"skips": {"no trl": 1}, "skipped": 1, "failed": 0, "failures": {}}
    records = {
        "oldest": {
            "versions": old,
            "passed": 1200,
            "skipped": 3,
            "failed": 1,
            "skips": {"no trl": 1, "torch < 2.7": 2},
            "failures": {"tests.test_a::test_b": "it broke"},
        },
        "newest": {"versions": {**old, "torch": "2.13.0"}, "passed": 1203, **nothing},
        "missing": {"python": "3.15", "problem": "there is no python3.15 here"},
    }
    lines = versions_table(records).splitlines()
    assert lines[2] == "| 3.11.7 | 2.6.0 | 0.21.0 | 5.0.0 | 2.0.0 | 1,200 | 3 | 1 |"
    assert lines[4] == "| 3.15 |  |  |  |  | not run: there is no python3.15 here |  |  |"
    assert lines[6] == "Skipped in all: no trl."
    assert lines[8:] == [
        "- Skipped in 1 of 2: torch < 2.7",
        "- Failed with oldest: `tests.test_a::test_b`: it broke",
    ]


def test_reproduced_table() -> None:
    def cell(row: str, column: str, scores: list[float], ours: float | None, spread: float | None = None) -> dict:
        return {
            "group": "ViT", "row": row, "column": column, "scores": scores, "ours": ours, "spread": spread,
            "missing": 2 - len(scores), "params": None if ours is None else 1536,
        }  # fmt: skip

    cells = [
        cell("LoRA", "digits", [96.0, 98.0], 97.0, 1.41),
        cell("LoRA", "CIFAR10", [40.0], 40.0),
        {**cell("LoRA", "Avg.", [], 68.5), "missing": 0},
        cell("AuroRA", "digits", [], None),
    ]
    lines = reproduced_table({"seeds": [0, 1], "statistic": "mean", "cells": cells}).splitlines()
    assert lines[0] == "| method | trained parameters | digits | CIFAR10 | Avg. |"
    assert lines[2] == "| LoRA | 1,536 | 97.0 ± 1.4 | 40.0 (1 of 2 seeds) | 68.5 |"
    assert lines[3] == "| AuroRA |  |  |  |  |"
    assert lines[-1].startswith("Mean ± standard deviation over 2 seeds")


def test_the_forms_at_several_rates() -> None:
    def run(rate: float, seed: int, static: float, nll: float | None) -> dict[str, Any]:
        scores = {"dynamic": (0.84, 0.40), "static": (static, nll), "calibrated": (0.839, 0.41)}
        by_form = {form: {"accuracy": accuracy, "nll": loss} for form, (accuracy, loss) in scores.items()}
        return {"recipe": {"training": {"learning_rate": rate}}, "seed": seed, "metric": {"by_form": by_form}}

    runs = [run(1e-2, 0, 0.70, None), run(1e-2, 1, 0.72, None), run(5e-3, 0, 0.78, 0.9), run(5e-3, 1, 0.78, None)]
    lines = forms_table(runs).splitlines()
    assert len(lines) == 2 + 2 * 3
    assert lines[2] == "| 0.005 | dynamic (trained) | 84.0 ± 0.0 | 0.400 ± 0.000 |  |  |"
    assert "| 78.0 ± 0.0 | 0.900 (1 of 2 finite) | -6.00 ± 0.00 | 0.5000 (1 of 2 finite) |" in lines[3]
    assert lines[6].endswith("| 71.0 ± 1.4 | not finite | -13.00 ± 1.41 | not finite |")
    accuracy, _ = forms_figure(runs).axes
    drawn = {one.get_label(): list(one.lines[0].get_ydata()) for one in accuracy.containers}
    assert drawn["static (the paper's merge)"] == pytest.approx([78, 71])
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["0.005", "0.01"]
