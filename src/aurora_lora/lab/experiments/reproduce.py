"""`aurora reproduce`: every run of one of the paper's tables or figures, whatever has been run of it before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...diffusion.recipe import load_found
from ...errors import ArgumentError, UserError
from ...train.finished_run import Result
from ...train.recipe import RunRecipe
from .jobs import Job
from .recipes import RecipeOfCell, load_suite
from .suite import HOURS, Cell, Column, Suite, cells


@dataclass(frozen=True)
class Reproduction:
    """A suite, the cells of it that are wanted, and the runs that these need."""

    suite: Suite
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    jobs: dict[tuple[str, int], Job]
    """By recipe and seed: each once, seed by seed, so that early tables are whole."""
    folder: Path
    """The folder of the table, `output/<suite>`; the runs are below it, or below the suites that share them."""

    def results(self) -> dict[tuple[str, int], Result]:
        """The results that there are, by recipe and seed."""
        return {key: result for key, job in self.jobs.items() if (result := job.finished()) is not None}

    def made_from(self) -> list[dict[str, Any]]:
        """What the results come from: each recipe with all of its values, and by seed the commit that ran it.

        A commit is None where the package was not run from a checkout.
        """
        found: dict[str, dict[str, Any]] = {}
        for (name, seed), result in self.results().items():
            values = {key: value for key, value in result["recipe"].items() if key != "seed"}
            one = found.setdefault(name, {"name": name, "recipe": values, "commits": {}})
            one["commits"][str(seed)] = result["git_commit"]
        return list(found.values())


def prepare(
    name: str,
    scale: str,
    output: Path | str,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> Reproduction:
    """Plan the runs of a suite. Of the test sets of a recipe, those that some cell shows are scored.

    Args:
        name: `table1`, `table2`, ...: see `suites`.
        scale: `hub` or `packaged`.
        output: folder of the runs of a scale, shared by the suites (`output/<suite>/<recipe>/seed<N>`); one that holds
            some goes on with them.
        only: patterns that choose recipes, rows or columns; all by default.
        seeds: instead of the suite's.
        overrides: changes to every recipe, as in `aurora train`.

    Raises:
        UserError: no such suite, scale or cell, or none that the recipes score; a seed that is not allowed, or given as
            an override; a recipe that is wrong.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise ArgumentError("seed is no change to the recipes: each is run with every seed of `seeds` 0,1,...")
    suite, output = load_suite(name, scale), Path(output)
    wanted = tuple(dict.fromkeys(suite.seeds if seeds is None else seeds))
    if wrong := [seed for seed in wanted if not 0 <= seed < 2**32]:
        raise ArgumentError(f"`seeds`: {wrong[0]} is not allowed: a seed is at least 0 and below 2**32")
    chosen = cells(suite, only)
    recipes: dict[str, RunRecipe] = {}
    folders: dict[str, Path] = {}
    for recipe in dict.fromkeys(cell.recipe for cell in chosen):
        other, _, own = recipe.rpartition("/")
        owner = load_suite(other, scale) if other else suite
        loaded = load_found(RecipeOfCell(owner, own), overrides)
        recipes[recipe] = _narrowed(loaded, (cell.column for cell in chosen if cell.recipe == recipe))
        folders[recipe] = output / owner.name / own
    scored = [one for one in chosen if one.column.test is None or one.column.test in recipes[one.recipe].test_sets]
    if not scored:  # a change to the recipes has left out what the columns show
        shown = ", ".join(dict.fromkeys(str(cell.column.test) for cell in chosen))
        given = ", ".join(dict.fromkeys(name for one in recipes.values() for name in one.test_sets))
        raise UserError(f"task.test_sets: the wanted columns show {shown}, and the recipes score {given} only")
    jobs = {
        (name, seed): Job(
            f"{name}, seed {seed}", recipe.model_copy(update={"seed": seed}), folders[name] / f"seed{seed}"
        )
        for seed in wanted
        for name, recipe in recipes.items()
    }
    return Reproduction(suite, tuple(scored), wanted, jobs, output / name)


def _narrowed(recipe: RunRecipe, columns: Iterable[Column]) -> RunRecipe:
    """The recipe with those of its test sets that columns show; with all where one shows their mean."""
    shown = {column.test for column in columns if column.metric != HOURS}
    sets = tuple(one for one in recipe.test_sets if one in shown)
    if None in shown or not sets:
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": sets})})
