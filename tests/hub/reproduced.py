"""Runs `aurora reproduce SUITE --scale hub`, and says what its table must hold, from the files of the runs."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.lab.experiments.recipes import load_suite

SMALL = (
    "training.epochs=1",
    "training.batch_size=8",
    "training.eval_batch_size=32",
    "training.threads=1",
    "training.gradient_accumulation_steps=1",
    "task.train_size=16",
    "calibration.examples=8",
    "calibration.batch_size=8",
)
Aurora = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """What a number of the table is: the paper's, and where ours is to be found."""

    row: dict[str, Any]
    column: dict[str, Any]
    name: str
    """Of the recipe, as the table has it: `lora`, or `table2/lora` of another suite."""

    @property
    def paper(self) -> float | None:
        scores: dict[str, float] = self.row.get("scores", {})
        return scores.get(self.column["name"])

    def ours(self, result: dict[str, Any]) -> float:
        """In a run's result."""
        if self.column["metric"] == "hours":
            return float(result["time"]["train_s"]) / 3600
        metric, test = result["metric"], self.column.get("test")
        forms = metric["by_form"] if test is None else metric["by_test_set"][test]
        return float(100 * forms[self.row.get("form", "merged")][self.column["metric"]])


def cells(suite: str, only: Sequence[str]) -> Iterator[Cell]:
    """The cells of a suite whose recipe matches one of the patterns."""
    table = load_suite(suite, "hub").model_dump()
    for group in table["groups"]:
        for row in group["rows"]:
            for column in table["columns"]:
                name = row["recipe"].replace("{column}", column["name"])
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in only):
                    yield Cell(row, column, name)


def reproduce(
    aurora: Aurora, runs: Path, suite: str, only: Sequence[str], *more: str, seeds: Sequence[int] = (0,), **env: str
) -> dict[str, Any]:
    """Run the recipes that match, and see that the table is whole and right.

    Returns:
        The results of the first seed, by `suite/recipe`.
    """
    chosen = [part for pattern in only for part in ("--only", pattern)]
    numbers = ",".join(map(str, seeds))
    done = aurora("reproduce", suite, "--scale", "hub", "-o", runs, *chosen, "--seeds", numbers, *more, **env)
    assert done["status"] == 0, done["stderr"] + done["stdout"]
    assert "failed" not in done["stderr"]
    wanted, results = list(cells(suite, only)), {}
    labels = {cell.column["label"] for cell in wanted}
    record = json.loads((runs / suite / "table.json").read_text())
    page = (runs / suite / "table.md").read_text().splitlines()
    for cell, one in zip(wanted, [one for one in record["cells"] if one["column"] in labels], strict=True):
        assert (one["row"], one["column"], one["recipe"]) == (cell.row["name"], cell.column["label"], cell.name)
        scores = []
        for seed in seeds:
            path = cell.name if "/" in cell.name else f"{suite}/{cell.name}"
            result = json.loads((runs / path / f"seed{seed}" / "result.json").read_text())
            results.setdefault(path, result)
            scores.append(cell.ours(result))
        assert one["scores"] == pytest.approx(scores)
        assert (one["paper"], one["missing"]) == (cell.paper, 0)
        paper = "" if cell.paper is None else f"{cell.paper:.1f}{'*' if cell.row.get('quoted') else ''}"
        numbers = f"| {cell.column['label']} | {paper} | {one['ours']:.1f} |"
        assert any(line.startswith(f"| {cell.row['name']} |") and numbers in line for line in page), numbers
        assert cell.column["label"] in "".join(page)
    assert wanted
    return results
