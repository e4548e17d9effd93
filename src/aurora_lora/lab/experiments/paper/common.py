"""What the suites share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....forms import CALIBRATED, DYNAMIC, MERGED, STATIC
from ..suite import Row

Values = dict[str, Any]
"""Fields of a recipe, or of a part of one."""

PAPER = "The paper's settings"
OURS = "Ours, not in the paper: the method as this package recommends it, with the paper's schedule."
SMALL_NOTE = "The method and the code of the paper's cell, on other models and data: the numbers are not comparable."


def by_task(tasks: Sequence[str], table: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    """The numbers of a table by row and task: in each row its name, then for each task its numbers with commas."""
    rows = (line.split() for line in table.strip().splitlines())
    return {name: {task: _numbers(cell) for task, cell in zip(tasks, cells, strict=True)} for name, *cells in rows}


def _numbers(cell: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else float(part) for part in cell.split(","))


def printed(table: str) -> list[tuple[str, list[float], str]]:
    """The rows of a table of scores: name, numbers (the average last), parameters."""
    rows = [line.split() for line in table.strip().splitlines()]
    return [(row[0], [float(number) for number in row[1:-1]], row[-1]) for row in rows]


def our_rows(paper: str, ours: str, *, dynamic: str | None = None, calibrated: str | None = None) -> tuple[Row, ...]:
    """Beside the paper's merge: its trained form and its calibrated merge, and our own setting.

    Args:
        paper: recipe of the paper's setting.
        ours: recipe of ours.
        dynamic: recipe of the trained form, where it has learning rates of its own; else the paper's run has it.
        calibrated: the same for the calibrated merge.
    """
    return (
        Row(name="AuroRA, unmerged", recipe=dynamic or paper, form=DYNAMIC),
        Row(name="AuroRA, calibrated", recipe=calibrated or paper, form=CALIBRATED),
        Row(name="ours, calibrated", recipe=ours, form=CALIBRATED),
    )


def form_of(short: str) -> str:
    """The form that a method's row has: the paper merges its own statically."""
    return STATIC if short.startswith("aurora-paper") else MERGED
