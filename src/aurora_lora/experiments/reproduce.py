"""`aurora reproduce`: every run of one of the paper's tables or figures, whatever has been run of it before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.results import Result
from .engines import Engine, outcomes
from .jobs import Job, Outcome
from .suite import Cell, Suite, cells, load_suite, plan, scored


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
    """Of the table: `output/<suite>`; the runs are below it, or below the suites that share them."""

    def results(self) -> dict[tuple[str, int], Result]:
        """The results that there are, by recipe and seed."""
        return {key: result for key, job in self.jobs.items() if (result := job.result()) is not None}


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
    recipes: Path | None = None,
) -> Reproduction:
    """Plan the runs of a suite.

    Args:
        name: `table1`, `table2`, ...: see `suites`.
        scale: `hub` or `packaged`.
        output: folder of the runs of a scale, shared by the suites; one that holds some goes on with them.
        only: patterns that choose recipes, rows or columns; all by default.
        seeds: instead of the suite's.
        overrides: changes to every recipe, as in `aurora train`.
        recipes: folder of the suites; the package's own by default.

    Raises:
        UserError: no such suite, scale or cell, or none that the recipes score; a seed that is not allowed, or given as
            an override; a recipe that is wrong; a folder that holds another recipe's run.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise UserError("seed is no change to the recipes: each is run with every seed of --seeds 0,1,...")
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds: {seed} is not allowed: a seed is at least 0 and below 2**32")
    suite, folder = load_suite(name, scale, recipes)
    chosen = tuple(cells(suite, only))
    wanted = tuple(dict.fromkeys(suite.seeds if seeds is None else seeds))
    if not wanted:
        raise UserError("--seeds: at least one is needed")
    output = Path(output)
    jobs = plan(chosen, wanted, folder, output, overrides)
    return Reproduction(name, scale, suite, tuple(scored(chosen, jobs)), wanted, jobs, output / name)


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
