"""A table or figure of the paper as data: its rows and columns, the paper's numbers, and the recipes of its cells.

    Suite(
        name="table1",
        scale="hub",
        title="Table 1: GLUE with RoBERTa",
        seeds=(0, 11111, 22222, 33333, 44444),
        columns=(Column(name="sst2", label="SST-2", metric="accuracy"), ...),
        groups=(Group(name="RoBERTa-Base", rows=(Row(name="LoRA", recipe="base-lora-{column}", ...), ...)), ...),
        recipes={"base-lora-sst2": CellRecipe(values={"model": ..., "task": ...}, words=("Settings of ...",)), ...},
    )

The suites themselves are in `experiments.paper`, and found by name in `experiments.recipes`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...errors import ArgumentError, UserError, unknown
from ...forms import MERGED
from ...train.recipe import Section, Seed

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
    scale: float = 100.0
    """What the metric is multiplied with: the paper prints percent."""

    @property
    def is_percent(self) -> bool:
        """Whether it counts in the average."""
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
    rows: Annotated[tuple[Row, ...], Field(min_length=1, strict=False)]


class CellRecipe(Section):
    """The recipe of a cell: its fields without `name`, and the lines that say what it is and where it comes from."""

    values: dict[str, Any]
    words: Annotated[tuple[str, ...], Field(min_length=1)]


class Suite(Section):
    """The whole table."""

    name: str
    scale: Literal["hub", "packaged"]
    """The paper's models and data, or small ones from the package index."""
    title: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)]
    statistic: Literal["median", "mean"] = "median"
    columns: Annotated[tuple[Column, ...], Field(min_length=1, strict=False)]
    groups: Annotated[tuple[Group, ...], Field(min_length=1, strict=False)]
    average: str | None = None
    """Label of a further column with the average over the columns that are percent, if there is one."""
    gpu: str | None = None
    """What the paper ran it on."""
    note: str | None = None
    """Printed below the table."""
    recipes: dict[str, CellRecipe]
    """The recipes by name: those of its cells that are not another suite's, and maybe more."""

    @model_validator(mode="after")
    def _known_columns(self) -> Suite:
        names = {column.name for column in self.columns}
        for row in (row for group in self.groups for row in group.rows):
            if unknown_names := set(row.scores) - names:
                raise ValueError(f"row {row.name}: scores for {', '.join(sorted(unknown_names))}, which is no column")
        return self


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


def cells(suite: Suite, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a suite, or those whose recipe, row or column matches one of the patterns (as in a shell).

    Raises:
        UserError: a pattern that nothing matches.
    """
    every = list(_cells(suite))
    if not only:
        return every
    chosen = set()
    for pattern in only:
        found = {index for index, cell in enumerate(every) if _matches(cell, pattern)}
        if not found:
            names = {name for cell in every for name in (cell.recipe, cell.row.name, cell.column.name, cell.group)}
            raise ArgumentError(f"`only`: '{pattern}' is an {unknown('recipe, row or column', names, pattern)}")
        chosen |= found
    return [every[index] for index in sorted(chosen)]


def _cells(suite: Suite) -> Iterator[Cell]:
    for group in suite.groups:
        for row in group.rows:
            for column in suite.columns:
                yield Cell(group.name, row, column)


def _matches(cell: Cell, pattern: str) -> bool:
    names = (cell.recipe, cell.row.name, cell.column.name, cell.column.label, cell.group)
    return any(fnmatch.fnmatch(name.casefold(), pattern.casefold()) for name in names)


def score_of(result: Mapping[str, Any], cell: Cell) -> float | None:
    """The cell's number in a run's result, scaled as the table prints it; None where it is not a number.

    Raises:
        UserError: the run has no such form, test set or metric.
    """
    if cell.column.metric == HOURS:
        return float(result["time"]["train_s"]) / 3600
    metric = result["metric"]
    where = f"the result of {cell.recipe}"
    forms = metric["by_form"] if cell.column.test is None else metric.get("by_test_set", {}).get(cell.column.test)
    if forms is None:
        raise UserError(f"{where} has no test set '{cell.column.test}'")
    if cell.row.form not in forms:
        raise UserError(f"{where} has no form '{cell.row.form}' (it has {', '.join(forms)})")
    scores = forms[cell.row.form]
    if cell.column.metric not in scores:
        raise UserError(f"{where} has no '{cell.column.metric}' (it has {', '.join(scores)})")
    value = scores[cell.column.metric]
    return None if value is None else cell.column.scale * value
