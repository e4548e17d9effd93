"""What the suites share: how a table's lines become rows, and its rows a suite with the recipe of each cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ....forms import CALIBRATED, DYNAMIC, MERGED, STATIC
from ..suite import CellRecipe, Column, Group, Row, Suite

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


def rows(
    lines: str | Iterable[str], titles: Mapping[str, str], columns: Sequence[str] = (), recipe: str = "{}-{{column}}"
) -> list[Row]:
    """The rows of a table. The paper merges its own method statically.

    Args:
        lines: the short name of a method, then what the paper prints: a score for each column, their average and the
            parameters; or the scores alone, or nothing.
        titles: of the rows, by short name.
        columns: the names of the columns.
        recipe: of a row, with `{}` for the short name.
    """
    found = []
    for line in lines.strip().splitlines() if isinstance(lines, str) else lines:
        short, *printed = line.split()
        average, params = (float(printed[-2]), printed[-1]) if len(printed) > len(columns) else (None, None)
        scores = {column: float(score) for column, score in zip(columns, printed, strict=False)}
        found.append(
            Row(
                name=titles[short],
                recipe=recipe.format(short),
                form=STATIC if short.startswith("aurora-paper") else MERGED,
                params=params,
                quoted=bool(scores) and not short.startswith("aurora"),
                scores=scores,
                average=average,
            )
        )
    return found


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


def suite(
    columns: Sequence[Column],
    groups: Mapping[str, Sequence[Row]],
    recipe: Callable[[str, str], CellRecipe],
    recipes: Mapping[str, CellRecipe] | None = None,
    **fields: Any,
) -> Suite:
    """A suite with the recipes of all cells that no other suite has.

    Args:
        columns: of the table.
        groups: its rows, by the name of their group.
        recipe: makes the recipe of a cell from the row's (without `-{column}`) and the column's name.
        recipes: further ones, of no cell.
        fields: of the suite.
    """
    found: dict[str, CellRecipe] = {}
    for row in (row for of_group in groups.values() for row in of_group):
        own = row.recipe.removesuffix("-{column}")
        for column in () if "/" in own else columns:
            name = row.recipe.format(column=column.name)
            if name not in found:
                found[name] = recipe(own, column.name)
    return Suite(
        columns=tuple(columns),
        groups=tuple(Group(name=name, rows=tuple(of_group)) for name, of_group in groups.items()),
        recipes=found | dict(recipes or {}),
        **fields,
    )


def opening(table: str, title: str, short: str, where: str, *source: str) -> tuple[str, ...]:
    """The words of a recipe: what it is, and where its settings come from."""
    return (f"Beside {table}: {title}{where}.", OURS) if short == "aurora" else (f"{table}: {title}{where}.", *source)
