"""`aurora reproduce`: every run of one of the paper's tables or figures, whatever has been run of it before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...diffusion.recipe_kinds import load_found
from ...errors import ArgumentError, UserError
from ...train.recipe import RunRecipe
from ...train.results import Result
from .jobs import Engine, Job, Outcome, outcomes
from .recipes import RecipeOfCell, load_suite
from .suite import HOURS, Cell, Suite, cells


@dataclass(frozen=True)
class Reproduction:
    """A suite, the cells of it that are wanted, and the runs that these need."""

    name: str
    scale: str
    suite: Suite
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    jobs: dict[tuple[str, int], Job]
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


@dataclass
class Tally:
    """What a call of `run` did."""

    finished: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def prepare(
    name: str,
    scale: str,
    output: Path | str,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> Reproduction:
    """Plan the runs of a suite.

    Args:
        name: `table1`, `table2`, ...: see `suites`.
        scale: `hub` or `packaged`.
        output: folder of the runs of a scale, shared by the suites; one that holds some goes on with them.
        only: patterns that choose recipes, rows or columns; all by default.
        seeds: instead of the suite's.
        overrides: changes to every recipe, as in `aurora train`.

    Raises:
        UserError: no such suite, scale or cell, or none that the recipes score; a seed that is not allowed, or given as
            an override; a recipe that is wrong; a folder that holds another recipe's run.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise ArgumentError("seed is no change to the recipes: each is run with every seed of `seeds` 0,1,...")
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise ArgumentError(f"`seeds`: {seed} is not allowed: a seed is at least 0 and below 2**32")
    suite = load_suite(name, scale)
    chosen = tuple(cells(suite, only))
    wanted = tuple(dict.fromkeys(suite.seeds if seeds is None else seeds))
    if not wanted:
        raise ArgumentError("`seeds`: at least one is needed")
    output = Path(output)
    jobs = plan(suite, chosen, wanted, output, overrides)
    return Reproduction(name, scale, suite, tuple(_scored(chosen, jobs)), wanted, jobs, output / name)


def plan(
    suite: Suite, chosen: Sequence[Cell], seeds: Sequence[int], output: Path, overrides: Sequence[str] = ()
) -> dict[tuple[str, int], Job]:
    """The runs that the cells need, by recipe and seed: each once, seed by seed, so that early tables are whole.

    Args:
        suite: whose cells they are.
        chosen: the cells.
        seeds: of each.
        output: folder of the runs: `output/<suite>/<recipe>/seed<N>`.
        overrides: changes to every recipe, as in `aurora train`.

    Returns:
        The runs. Of the test sets of a recipe, those that some cell shows are scored.

    Raises:
        UserError: a recipe is wrong.
    """
    loaded: dict[str, tuple[RunRecipe, Path]] = {}
    for cell in chosen:
        if cell.recipe not in loaded:
            other, _, name = cell.recipe.rpartition("/")
            owner = load_suite(other, suite.scale) if other else suite
            loaded[cell.recipe] = load_found(RecipeOfCell(owner, name), overrides), output / owner.name / name
    loaded = {name: (_narrowed(recipe, name, chosen), folder) for name, (recipe, folder) in loaded.items()}
    return {
        (name, seed): Job(f"{name}, seed {seed}", recipe.model_copy(update={"seed": seed}), folder / f"seed{seed}")
        for seed in seeds
        for name, (recipe, folder) in loaded.items()
    }


def _narrowed(recipe: RunRecipe, name: str, chosen: Sequence[Cell]) -> RunRecipe:
    """The recipe with those of its test sets that its cells show; with all where a cell shows their mean."""
    shown = {cell.column.test for cell in chosen if cell.recipe == name and cell.column.metric != HOURS}
    sets = tuple(one for one in recipe.test_sets if one in shown)
    if None in shown or not sets:
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": sets})})


def _scored(chosen: Sequence[Cell], jobs: Mapping[tuple[str, int], Job]) -> list[Cell]:
    """The cells whose test set their run scores: a change to the recipes may have left some out.

    Raises:
        UserError: none is left.
    """
    sets = {name: job.recipe.test_sets for (name, _), job in jobs.items()}
    left = [cell for cell in chosen if cell.column.test is None or cell.column.test in sets[cell.recipe]]
    if not left:
        wanted = ", ".join(dict.fromkeys(str(cell.column.test) for cell in chosen))
        given = ", ".join(dict.fromkeys(name for some in sets.values() for name in some))
        raise UserError(f"task.test_sets: the wanted columns show {wanted}, and the recipes score {given} only")
    return left


def run(todo: Reproduction, engine: Engine, report: Callable[[Outcome], Any] = lambda outcome: None) -> Tally:
    """Run what is not finished. A run that fails is noted, and the others go on.

    Args:
        todo: from `prepare`.
        engine: where.
        report: called with each outcome as it comes, such as a progress bar.
    """
    tally = Tally()
    for outcome in outcomes(todo.jobs.values(), engine):
        (tally.finished if outcome.error is None else tally.failed).append(outcome)
        report(outcome)
    return tally
