"""Commands on many runs: reproduce, sweep, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_lora.errors import DIVERGED, UserError, counted

from .common import (
    DryRun,
    Json,
    Overrides,
    complain,
    importing,
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

Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", metavar="N", help="Runs at a time: one, or one a GPU, or 64 of Slurm.")
]
LauncherOption = Annotated[str, typer.Option("--launcher", metavar="NAME", help="local, accelerate or slurm.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Cluster option of submitit: slurm_partition=gpu; repeatable."),
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="GPU to plan for, or `here`; by default the paper's, or this machine."),
]


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
    launcher: LauncherOption = "local",
    settings: Settings = None,
    gpu: Gpu = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run every experiment of one table or figure of the paper, then print the paper's numbers beside ours.

    Finished runs are reused, interrupted ones resumed, and a failed run does not stop the others.
    Writes DIR/SUITE/table.md and table.json.
    """
    with importing():
        from aurora_lora.lab.experiments.reproduce import prepare

    todo = prepare(
        suite,
        scale,
        output or Path("runs") / scale,
        only=only or (),
        seeds=None if seeds is None else _seeds(seeds),
        overrides=overrides or (),
    )
    if dry_run:
        _print_runs(todo, gpu, as_json)
        return
    with importing():
        from aurora_lora.data.models import check_access
        from aurora_lora.files import check_writable
        from aurora_lora.lab.experiments.jobs import make_engine
        from aurora_lora.lab.experiments.progress import Overall
        from aurora_lora.lab.experiments.reproduce import run

    minutes = _minutes(gpu or todo.suite.gpu)
    engine = make_engine(launcher, jobs, _pairs(settings), minutes)
    check_writable(todo.folder)
    left = [job for job in todo.jobs.values() if job.status() != "finished"]
    models = sorted({job.recipe.model for job in left})
    for model in models:
        check_access(model)
    make_models(models)
    with Overall(stderr(), f"{suite}, {scale}", len(todo.jobs), len(todo.jobs) - len(left)) as bar:
        tally = run(todo, engine, bar)
    failed = [_failure(one) for one in tally.failed]
    _compare_with_paper(todo, suite, scale, failed, as_json)
    _stop_if_failed(failed)


def _print_runs(todo: Reproduction, gpu: str | None, as_json: bool) -> None:
    """`aurora reproduce --dry-run`."""
    from aurora_lora.data.models import why_no_access
    from aurora_lora.lab.experiments.dry_run import describe, plan_lines, plan_tables

    rows = describe(todo, gpu)
    for why in filter(None, map(why_no_access, sorted({job.recipe.model for job in todo.jobs.values()}))):
        complain(f"note: {why}")
    if as_json:
        print_json(rows)
        return
    print_tables(plan_tables(todo.suite, rows))
    for line in plan_lines(rows):
        stdout().print(line)


def _compare_with_paper(
    todo: Reproduction, suite: str, scale: str, failed: list[dict[str, Any]], as_json: bool
) -> None:
    """Write and print the paper's numbers beside those of the runs that are finished."""
    from aurora_lora.files import write_json, write_text
    from aurora_lora.lab.report.paper_comparison import compare, markdown, notes, tables

    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    records = [one.to_dict() for one in compared]
    record = {"suite": suite, "scale": scale, "seeds": todo.seeds, "statistic": todo.suite.statistic}
    write_json(todo.folder / "table.json", {**record, "cells": records, "runs": todo.made_from()})
    write_text(todo.folder / "table.md", markdown(todo.suite, compared))
    if as_json:
        print_json({"cells": records, "failed": failed})
    else:
        stdout().print(todo.suite.title)
        print_tables(tables(todo.suite, compared))
        for line in notes(todo.suite, compared):
            print(line)
        print(f"wrote {todo.folder / 'table.md'}, {todo.folder / 'table.json'}")


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
    launcher: LauncherOption = "local",
    settings: Settings = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="GPU of the cluster, for the time limit of its jobs.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Tune every setting at the same budget on validation data; run what was chosen over the seeds on test data.

    Finished runs are reused, interrupted ones resumed. Writes DIR/runs.jsonl and DIR/study.json.
    """
    with importing():
        from aurora_lora.data.models import check_access
        from aurora_lora.lab.experiments.jobs import make_engine
        from aurora_lora.lab.experiments.progress import Overall
        from aurora_lora.lab.experiments.study import load_study
        from aurora_lora.lab.experiments.sweep import Sweep
        from aurora_lora.lab.report.study import study_tables

    plan = load_study(study, overrides or ())
    if dry_run:
        _print_plan(plan, as_json)
        return
    output = output or Path("runs") / "studies" / plan.slug

    def prepare() -> None:
        with bar.paused():
            for model in plan.models:
                check_access(model)
            make_models(plan.models)

    engine = make_engine(launcher, jobs, _pairs(settings), _minutes(gpu), prepare)
    failed: list[dict[str, Any]] = []
    tuned = len(plan.settings) * plan.tuning.budget
    final = len(plan.settings) * len(plan.seeds) * plan.tuning.finalists

    def report(stage: str, outcome: Any) -> None:
        bar(outcome)
        if outcome.error is not None and DIVERGED not in outcome.error:
            failed.append(_failure(outcome))

    runs = Sweep(plan, output, engine, report)
    with Overall(stderr(), plan.name, tuned + final - (told := runs.told())) as bar:
        runs.tune()
        if plan.tuning.each_form or plan.tuning.finalists > 1:  # now it is known how many values they share
            bar.expect(tuned + len(runs.final_jobs()) - told)
        runs.run_seeds()
        summary = runs.summary()
    diverged = [_failure(one) for one in runs.diverged()]
    for setting in runs.without_score():
        error, folder = "none of its runs gave a validation score", str(output / "runs" / setting.slug)
        where = diverged if runs.has_diverged(setting) else failed
        where.append({"run": setting.name, "error": error, "folder": folder})
    failed += diverged
    if as_json:
        print_json({**summary, "failed": failed})
    else:
        print_tables(study_tables(summary))
        print(f"wrote {output / 'study.json'}; {output / 'runs.jsonl'}")
    _stop_if_failed(failed, len(diverged))


def _print_plan(plan: Any, as_json: bool) -> None:
    tuning = plan.tuning
    final = len(plan.seeds) * tuning.finalists
    rows = [{"setting": setting.name, "tuning_runs": tuning.budget, "final_runs": final} for setting in plan.settings]
    if as_json:
        print_json(rows)
        return
    what = "what is chosen" if tuning.finalists == 1 else f"the best {tuning.finalists} values"
    if tuning.each_form:
        what = f"{what} for each form"
    for row in rows:
        to_tune, chosen = counted(row["tuning_runs"], "run"), counted(row["final_runs"], "run")
        print(f"{row['setting']}: {to_tune} to tune, {chosen} of {what}")
    bound = "; more where forms choose differently" if tuning.each_form else ", at most"
    print(f"{counted(sum(row['tuning_runs'] + row['final_runs'] for row in rows), 'run')} in all{bound}")


def _failure(outcome: Outcome) -> dict[str, Any]:
    return {"run": outcome.job.name, "error": outcome.error, "folder": str(outcome.job.folder)}


def _stop_if_failed(failed: list[dict[str, Any]], diverged: int = 0) -> None:
    """Exit with 1 if anything failed.

    Args:
        failed: run, error and folder of each.
        diverged: how many of them did, and would again.
    """
    if failed:
        for one in failed:
            note(f"failed: {one['run']}: {one['error']}")
        again = "the same command tries them again"
        if diverged:
            others = "" if diverged == len(failed) else "; the same command tries the others again"
            again = f"{diverged} diverged, and would again: give the study other values, or begin it anew{others}"
        note(f"{len(failed)} failed; {again}")
        raise typer.Exit(1)


def _minutes(gpu: str | None) -> Callable[[Any], int]:
    """The time to ask a cluster with such GPUs for.

    Raises:
        UserError: the GPU is not known.
    """
    from aurora_lora.lab.experiments.dry_run import time_limit
    from aurora_lora.lab.experiments.known import machine

    if gpu is not None:
        machine(gpu)
    return lambda job: time_limit(job.recipe, gpu)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds: '{text}' is not a list of whole numbers, such as 0,1,2") from error


def _pairs(settings: list[str] | None) -> dict[str, str]:
    pairs = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set: '{setting}' is not of the form key=value")
        pairs[key] = value
    return pairs


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Runs, result files, studies, or folders of them.")
    ],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE.md", help="Insert the tables into this document, between its marks."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for forms.png and forms.svg.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write one page: scores, figures, times.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page, by default `Fine-tuning runs`.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write the page's figures as PNG and SVG, and its times."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="FIGURE",
            help="scores, ranks, rates, curves, updates, sigma, gap or merges; may be repeated.",
        ),
    ] = None,
) -> None:
    """Tables of AuroRA's forms or of a study; or a page, or figures, about any runs.

    Of a study, the chosen runs are shown.
    """
    if title is not None and html is None:
        raise UserError("--title goes with --html FILE.html")
    if only and figures is None:
        raise UserError("--only goes with --figures DIR")
    if html is not None or figures is not None:
        _page_and_figures(runs, html, title or "Fine-tuning runs", figures, only or [])
        if into is None and output is None:
            return
    from aurora_lora.lab.report.figures import save
    from aurora_lora.lab.report.measured import forms_figure, forms_table
    from aurora_lora.lab.report.sections import load_sections
    from aurora_lora.lab.report.study import convergence_note, study_tables
    from aurora_lora.lab.report.tables import insert

    sections = load_sections(runs)
    for section in (section for section in sections if section.study is not None):
        assert section.study is not None
        print_tables(study_tables(section.study))
        stdout().print(convergence_note(section.groups))
    results = [result for section in sections if section.study is None for result in section.results]
    if not results and into is None and output is None:
        return
    table = forms_table(results)
    saved = [] if output is None else save(forms_figure(results), output / "forms")
    if into is None:
        print(table)
    else:
        insert(into, "forms", table)
        print(f"wrote the table into {into}")
    if saved:
        say_written(saved)


def _page_and_figures(runs: list[Path], html: Path | None, title: str, figures: Path | None, only: list[str]) -> None:
    from aurora_lora.lab.report.page import write_figures, write_page
    from aurora_lora.lab.report.sections import load_sections

    sections = load_sections(runs)
    if html is not None:
        write_page(sections, html, title)
        print(f"wrote {html}")
    if figures is not None:
        written, left_out = write_figures(sections, figures, only)
        say_written(written)
        for line in left_out:
            print(line)


COMMANDS = (reproduce, sweep, report)
