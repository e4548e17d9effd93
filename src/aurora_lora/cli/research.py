"""Commands on many runs: reproduce, sweep, report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aurora_lora.errors import AuroraError, UserError, counted, one_line
from aurora_lora.files import check_writable, write_json, write_text

from .common import (
    DryRun,
    Json,
    Overrides,
    make_models,
    note,
    print_json,
    print_tables,
    say_written,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from aurora_lora.lab.experiments.jobs import Outcome
    from aurora_lora.lab.experiments.reproduce import Reproduction

Jobs = Annotated[int | None, typer.Option("--jobs", "-j", metavar="N", help="Runs at a time: one, or one a GPU.")]


def reproduce(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="table1, table2, ...: a table or figure of the paper.")],
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option("--scale", help="hub: the paper's models and data; packaged: small ones.")] = (
        "packaged"
    ),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the runs, of all suites; by default runs/SCALE."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Only these recipes, rows or columns; may be repeated."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,...", help="Seeds to run; by default the suite's.")
    ] = None,
    jobs: Jobs = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="GPU to plan for, or `here`; by default the paper's, or this one."),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run every experiment of one table or figure of the paper, then print the paper's numbers beside ours.

    Finished runs are reused, interrupted ones resumed, and a failed run does not stop the others.
    Writes DIR/SUITE/table.md and table.json.
    """
    from aurora_lora.lab.experiments.reproduce import prepare

    wanted = None if seeds is None else _seeds(seeds)
    output = output or Path("runs") / scale
    todo = prepare(suite, scale, output, only=only or (), seeds=wanted, overrides=overrides or ())
    if dry_run:
        _print_runs(todo, gpu, as_json)
        return
    from aurora_lora.lab.experiments.jobs import make_runner

    run = make_runner(jobs)
    check_writable(todo.folder)
    make_models(sorted({job.recipe.model for job in todo.jobs.values() if job.status() != "finished"}))
    failed: list[dict[str, str]] = []
    with _progress(f"{suite}, {scale}", len(todo.jobs)) as bar:
        for outcome in run(todo.jobs.values()):
            bar.count(outcome)
            if outcome.error is not None:
                failed.append(outcome.failure())
    _compare_with_paper(todo, failed, as_json)
    _stop_if_failed(failed)


class _Bar:
    """One bar over many runs, and a line for each that ends."""

    def __init__(self, progress: Progress, title: str, runs: int) -> None:
        self.progress = progress
        self.task = progress.add_task(title, total=runs)

    def expect(self, runs: int) -> None:
        """Another number of runs, where that shows on the way only."""
        self.progress.update(self.task, total=runs)

    def count(self, outcome: Outcome) -> None:
        """Count an outcome, and print its line."""
        self.progress.advance(self.task)
        console = self.progress.console
        console.print(f"{outcome.job.name}: {outcome.line}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(title: str, runs: int) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, title, runs)


def _print_runs(todo: Reproduction, gpu: str | None, as_json: bool) -> None:
    """`aurora reproduce --dry-run`."""
    from aurora_lora.lab.experiments.dry_run import describe, plan_tables

    rows = describe(todo, gpu)
    if as_json:
        print_json(rows)
        return
    print_tables(plan_tables(todo.suite.title, rows))


def _compare_with_paper(todo: Reproduction, failed: list[dict[str, str]], as_json: bool) -> None:
    """Write and print the paper's numbers beside those of the runs that are finished."""
    from aurora_lora.lab.report.paper import compare, markdown, notes, tables

    suite = todo.suite
    compared = compare(suite, todo.cells, todo.seeds, todo.results())
    record = {"suite": suite.name, "scale": suite.scale, "seeds": todo.seeds, "statistic": suite.statistic}
    write_json(todo.folder / "table.json", {**record, "cells": compared, "runs": todo.made_from()})
    write_text(todo.folder / "table.md", markdown(suite, compared))
    if as_json:
        print_json({"cells": compared, "failed": failed})
        return
    stdout().print(suite.title)
    print_tables(tables(compared, suite.statistic))
    for line in notes(suite, compared):
        print(line)
    say_written([todo.folder / "table.md", todo.folder / "table.json"])


def sweep(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A name that `aurora list studies` has, or a YAML file.")
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the study; by default runs/studies/NAME."),
    ] = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Tune every setting at the same budget on validation data; run what was chosen over the seeds on test data.

    Finished runs are reused, interrupted ones resumed. Writes DIR/runs.jsonl and DIR/study.json.
    """
    from aurora_lora.lab.experiments.jobs import make_runner
    from aurora_lora.lab.experiments.study import load_study
    from aurora_lora.lab.experiments.sweep import Sweep
    from aurora_lora.lab.report.study import study_tables

    plan = load_study(study, overrides or ())
    tuned, final = plan.tuning.budget, len(plan.seeds) * plan.tuning.finalists
    if dry_run:
        rows = [{"setting": one.name, "tuning_runs": tuned, "final_runs": final} for one in plan.settings]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            print(f"{row['setting']}: {counted(tuned, 'run')} to tune, {final} over the seeds of what is chosen")
        more = "; more where forms choose differently" if plan.tuning.each_form else ", at most"
        print(f"{counted(len(rows) * (tuned + final), 'run')} in all{more}")
        return
    output = output or Path("runs") / "studies" / plan.slug
    run = make_runner(jobs)
    runs = Sweep(plan, output, run, lambda outcome: bar.count(outcome))
    left = len(plan.settings) * tuned - runs.told()
    if left or any(job.status() != "finished" for job in runs.final_jobs()):
        make_models(plan.models)
    with _progress(plan.name, left + len(plan.settings) * final) as bar:
        runs.tune()
        bar.expect(left + len(runs.final_jobs()))
        runs.run_seeds()
        summary = runs.summary()
    failed = runs.failures()
    if as_json:
        print_json({**summary, "failed": failed})
    else:
        print_tables(study_tables(summary))
        say_written([output / "study.json", output / "runs.jsonl"])
    _stop_if_failed(failed)


def _stop_if_failed(failed: list[dict[str, str]]) -> None:
    """Exit with 1 if anything failed."""
    for one in failed:
        note(f"failed: {one['run']}: {one['error']}")
    if failed:
        note(f"{len(failed)} failed; the same command tries them again, but for runs that diverged")
        raise typer.Exit(1)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds: '{text}' is not a list of whole numbers, such as 0,1,2") from error


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Runs, result files, studies, or folders of them.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write one page: scores, figures, times.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page, by default `Fine-tuning runs`.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write the page's figures as PNG and SVG."),
    ] = None,
) -> None:
    """Tables of runs or of a study; or a page, or figures, about them.

    Of a study, the chosen runs are shown.
    """
    if title is not None and html is None:
        raise UserError("--title goes with --html FILE.html")
    try:
        _report(runs, html, title, figures)
    except AuroraError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"a result among {', '.join(map(str, runs))} is not as runs write it ({what})") from error


def _report(runs: list[Path], html: Path | None, title: str | None, figures: Path | None) -> None:
    from aurora_lora.lab.report.page import write_figures, write_page
    from aurora_lora.lab.report.runs import load_sections
    from aurora_lora.lab.report.single import single_tables
    from aurora_lora.lab.report.study import convergence_note, section_tables

    sections = load_sections(runs)
    if html is not None:
        write_page(sections, html, title or "Fine-tuning runs")
        print(f"wrote {html}")
    if figures is not None:
        written, left_out = write_figures(sections, figures)
        say_written(written)
        for line in left_out:
            print(line)
    for section in sections if html is None and figures is None else ():
        print_tables([*section_tables(section), *single_tables(section)])
        if section.study is not None:
            stdout().print(convergence_note(section.scores))
