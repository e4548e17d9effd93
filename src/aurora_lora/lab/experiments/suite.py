"""A table or figure of the paper as data: its rows and columns, the paper's numbers, and the recipes of its cells.

The suites themselves are read in `experiments.paper`, and found by name in `experiments.recipes`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ...errors import ArgumentError, UserError, unknown
from ...field_errors import Section
from ...forms import MERGED

HOURS = "hours"


class Column(Section):
    """A column of scores.

    A run whose task has several test sets gives a column each: `test` names the column's. The metric `hours` is the
    time of the training.
    """

    name: str
    label: str
    metric: str
    test: str | None = None

    @property
    def is_percent(self) -> bool:
        """Whether it is shown in percent, and counts in the average."""
        return self.metric != HOURS


class Row(Section):
    """A method. Rows may share recipes: the forms of AuroRA are scored from one training run."""

    name: str
    recipe: str
    """Name of the cell's recipe; `{column}` stands for the column's name. `table2/lora` is one of another suite, at the
    same scale: the run is shared."""
    form: str = MERGED
    params: str | None = None
    """The trained parameters, as the paper prints them."""
    quoted: bool = False
    """The paper takes the numbers from earlier work."""
    scores: dict[str, float] = Field(default_factory=dict)
    """The paper's, by column; none for a row that is ours."""
    average: float | None = None
    """The paper's average over the columns."""


class Group(Section):
    """The rows of one model."""

    name: str
    rows: tuple[Row, ...] = Field(strict=False)


class CellRecipe(Section):
    """The recipe of a cell: its fields without `name`, and the lines that say what it is and where it comes from."""

    values: dict[str, Any]
    words: tuple[str, ...]


class Suite(Section):
    """The whole table."""

    name: str
    scale: Literal["hub", "packaged"]
    """The paper's models and data, or small ones from the package index."""
    title: str
    seeds: tuple[int, ...] = Field(strict=False)
    statistic: Literal["median", "mean"] = "median"
    columns: tuple[Column, ...] = Field(strict=False)
    groups: tuple[Group, ...] = Field(strict=False)
    average: str | None = None
    """Label of a further column with the average over the columns that are percent, if there is one."""
    gpu: str | None = None
    """What the paper ran it on."""
    note: str | None = None
    """Printed below the table."""
    recipes: dict[str, CellRecipe]
    """The recipes by name: those of its cells that are not another suite's, and maybe more."""


@dataclass(frozen=True)
class Cell:
    """One number of the table: where it stands, and the recipe that gives it."""

    group: str
    row: Row
    column: Column

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self.row.recipe.format(column=self.column.name)

    @property
    def paper(self) -> float | None:
        """The paper's number."""
        return self.row.scores.get(self.column.name)

    @property
    def names(self) -> tuple[str, ...]:
        """What a pattern that chooses cells may match."""
        return self.recipe, self.row.name, self.column.name, self.column.label, self.group


def cells(suite: Suite, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a suite, or those whose recipe, row or column matches one of the patterns (as in a shell).

    Raises:
        UserError: a pattern that nothing matches.
    """
    every = [Cell(group.name, row, column) for group in suite.groups for row in group.rows for column in suite.columns]
    chosen: set[int] = set()
    for pattern in only:
        found = {place for place, cell in enumerate(every) if _matches(cell, pattern)}
        if not found:
            known = {name for cell in every for name in cell.names}
            raise ArgumentError(f"`only`: '{pattern}' is an {unknown('recipe, row or column', known, pattern)}")
        chosen |= found
    return [cell for place, cell in enumerate(every) if not only or place in chosen]


def _matches(cell: Cell, pattern: str) -> bool:
    return any(fnmatch.fnmatch(name.casefold(), pattern.casefold()) for name in cell.names)


def score_of(result: Mapping[str, Any], cell: Cell) -> float | None:
    """The cell's number in a run's result, as the table prints it; None where it is not a number.

    Raises:
        UserError: the run has no such form, test set or metric.
    """
    if cell.column.metric == HOURS:
        return float(result["time"]["train_s"]) / 3600
    metric, test = result["metric"], cell.column.test
    try:
        forms = metric["by_form"] if test is None else metric.get("by_test_set", {})[test]
        value = forms[cell.row.form][cell.column.metric]
    except KeyError as error:
        raise UserError(f"the result of {cell.recipe} has no {error}") from error
    return None if value is None else 100.0 * float(value)
