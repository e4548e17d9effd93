"""A table or figure of the paper as data: its rows and columns, the paper's numbers, and the recipes of its cells.

`recipes/<suite>/<scale>/suite.yaml`, with one recipe a cell beside it:

    title: "Table 1: GLUE with RoBERTa"
    seeds: [0, 11111, 22222, 33333, 44444]
    statistic: median
    columns: [{name: sst2, label: SST-2, metric: accuracy}, ...]
    groups:
      - name: RoBERTa-Base
        rows:
          - {name: LoRA, recipe: "base-lora-{column}", form: merged, params: 0.3M, quoted: true, scores: {sst2: 95.1}}
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..errors import UserError
from ..methods.base import unknown
from ..training import yaml_text
from ..training.recipe import RunRecipe, Section, Seed
from .jobs import Job
from .kinds import load_any

SUITE = "suite.yaml"
SCALES = ("hub", "packaged")
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
    """Name of the cell's recipe, without `.yaml`; `{column}` stands for the column's name. `table2/lora` is one of
    another suite, at the same scale: the run is shared."""
    form: str = "merged"
    params: str | None = None
    """As the paper prints it."""
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


class Suite(Section):
    """The whole table."""

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


def recipes_folder() -> Path:
    """Where the recipes are: in the package, or beside it in a checkout."""
    packaged = Path(str(files("aurora_lora") / "recipes"))
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"


def suites(folder: Path | None = None) -> dict[str, list[str]]:
    """The suites that there are, and the scales of each."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder or recipes_folder()).glob(f"*/*/{SUITE}")):
        found.setdefault(path.parts[-3], []).append(path.parts[-2])
    return found


def load_suite(name: str, scale: str, folder: Path | None = None) -> tuple[Suite, Path]:
    """A suite and the folder of its recipes.

    Raises:
        UserError: there is no such suite, not at this scale, or its file is wrong.
    """
    known = suites(folder)
    if name not in known:
        raise UserError(f"'{name}' is an {unknown('suite', known, name)}")
    if scale not in known[name]:
        raise UserError(f"--scale: '{scale}' is not allowed: {name} is there at scale {' and '.join(known[name])}")
    path = (folder or recipes_folder()) / name / scale / SUITE
    try:
        return Suite.model_validate(yaml_text.read(path)), path.parent
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise UserError("\n".join(f"{path}: {line}" for line in lines)) from error


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
            raise UserError(f"--only: '{pattern}' is an {unknown('recipe, row or column', names, pattern)}")
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


def plan(
    chosen: Sequence[Cell], seeds: Sequence[int], recipes: Path, output: Path, overrides: Sequence[str] = ()
) -> dict[tuple[str, int], Job]:
    """The runs that the cells need, by recipe and seed: each once, seed by seed, so that early tables are whole.

    Args:
        chosen: the cells.
        seeds: of each.
        recipes: the suite's folder, `<suite>/<scale>`.
        output: folder of the runs: `output/<suite>/<recipe>/seed<N>`.
        overrides: changes to every recipe, as in `aurora train`.

    Returns:
        The runs. Of the test sets of a recipe, those that some cell shows are scored.

    Raises:
        UserError: a recipe cannot be read.
    """
    loaded: dict[str, tuple[RunRecipe, Path]] = {}
    for cell in chosen:
        if cell.recipe not in loaded:
            suite, _, name = cell.recipe.rpartition("/")
            suite = suite or recipes.parent.name
            path = recipes.parents[1] / suite / recipes.name / f"{name}.yaml"
            loaded[cell.recipe] = load_any(path, overrides), output / suite / name
    loaded = {name: (_narrowed(recipe, name, chosen), folder) for name, (recipe, folder) in loaded.items()}
    return {
        (name, seed): Job(f"{name}, seed {seed}", recipe.model_copy(update={"seed": seed}), folder / f"seed{seed}")
        for seed in seeds
        for name, (recipe, folder) in loaded.items()
    }


def _narrowed(recipe: RunRecipe, name: str, chosen: Sequence[Cell]) -> RunRecipe:
    """The recipe with those of its test sets that its cells show; with all where a cell shows their mean."""
    shown = {cell.column.test for cell in chosen if cell.recipe == name and cell.column.metric != HOURS}
    sets = tuple(one for one in getattr(recipe.task, "test_sets", None) or () if one in shown)
    if None in shown or not sets:
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": sets})})


def scored(chosen: Sequence[Cell], jobs: Mapping[tuple[str, int], Job]) -> list[Cell]:
    """The cells whose test set their run scores: a change to the recipes may have left some out.

    Raises:
        UserError: none is left.
    """
    sets = {name: getattr(job.recipe.task, "test_sets", None) or () for (name, _), job in jobs.items()}
    left = [cell for cell in chosen if cell.column.test is None or cell.column.test in sets[cell.recipe]]
    if not left:
        wanted = ", ".join(dict.fromkeys(str(cell.column.test) for cell in chosen))
        given = ", ".join(dict.fromkeys(name for some in sets.values() for name in some))
        raise UserError(f"task.test_sets: the wanted columns show {wanted}, and the recipes score {given} only")
    return left


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
