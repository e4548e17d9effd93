"""The command `aurora`: parses, calls, prints. A user's mistake is one plain line on stderr and exit code 2."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

from aurora_lora._version import __version__
from aurora_lora.errors import AuroraError

MISSING_EXTRA = "aurora needs the Python package '{name}': pip install 'aurora-lora[train]'"

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    print(MISSING_EXTRA.format(name=error.name), file=sys.stderr)
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from aurora_lora.training.progress import ProgressBar

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 80
app = typer.Typer(
    help="AuroRA: fine-tune with a nonlinear low-rank adapter, calibrate it, merge it, use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished `aurora train`.")]


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a user can put right as one line, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AuroraError as error:
            _complain(str(error))
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("aurora_lora"):
                raise
            _complain(MISSING_EXTRA.format(name=error.name.partition(".")[0]))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            resumes = ": the same command goes on from the last checkpoint" if command.__name__ == "train" else ""
            _complain(f"interrupted{resumes}")
            raise typer.Exit(130) from error

    return guarded


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"aurora-lora {__version__}")
        raise typer.Exit


@app.command()
@plain_errors
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train; see `aurora list recipes`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as training.epochs=1."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Fine-tune, choose the best epoch, calibrate, and score every form.

    Writes DIR/adapter/, DIR/result.json and DIR/recipe.yaml. Interrupted at any moment, the same command goes on from
    the last checkpoint. A finished run is shown again.
    """
    from aurora_lora.training.recipe import load_recipe

    plan = load_recipe(recipe, overrides or ())
    progress = _progress()
    from aurora_lora.training.run import train as run_recipe
    from aurora_lora.training.summary import print_run, written

    names = iter((plan.method.name, plan.reference.method.name if plan.reference else ""))
    bars: list[ProgressBar] = []

    def callbacks() -> list[ProgressBar]:
        bars.append(progress(next(names)))
        return bars[-1:]

    try:
        run = run_recipe(plan, output, callbacks)
    finally:
        for bar in bars:
            bar.stop()
    if not _is_main():
        return
    if as_json:
        paths = [str(path) for path in written(run)]
        _print_json({"result": run.result, "reference": run.reference, "written": paths})
        return
    if run.was_finished:
        _stderr().print(f"{output} holds this run, finished: nothing to train", highlight=False, soft_wrap=True)
    print_run(_stdout(), run)


@app.command()
@plain_errors
def evaluate(
    folder: RunFolder,
    form: Annotated[
        str | None, typer.Option("--form", help="One form only: dynamic, static, calibrated, merged.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    as_json: Json = False,
) -> None:
    """Score a finished run again."""
    from aurora_lora.training.trained import evaluate as score
    from aurora_lora.training.trained import load_run

    run = load_run(folder)
    bar = _progress()("scoring")
    try:
        scores = score(run, run.forms if form is None else (form,), split, [bar])
    finally:
        bar.stop()
    if as_json and _is_main():
        _print_json({"folder": str(folder), "split": split, "by_form": scores})
    elif _is_main():
        from aurora_lora.training.summary import print_scores

        print_scores(_stdout(), f"{run.task.name}: {split}", run.recipe.method.name, scores, run.deployed_form)


@app.command()
@plain_errors
def merge(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the model.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", help="Which form to merge; the one that the run deploys by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another merged model in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write a stand-alone model that loads with plain Transformers.

    OUT must be new or empty, or hold this very merge, which is then left as it is.
    """
    from aurora_lora.training.trained import load_run
    from aurora_lora.training.trained import merge as merge_run

    run = load_run(folder)
    _progress()
    merged = merge_run(run, form, output, overwrite=overwrite)
    if as_json:
        _print_json({"folder": str(merged.folder), "form": merged.form, "was_there": merged.was_there})
    elif merged.was_there:
        print(f"{merged.folder} already holds this merge ({merged.form} form)")
    else:
        print(f"wrote {merged.folder}: a plain Transformers model, {merged.form} form")


@app.command()
@plain_errors
def gap(
    folder: RunFolder,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    examples: Annotated[int | None, typer.Option("--examples", help="The first so many; all by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How far each mergeable form is from the trained one, by layer and end to end.

    Writes gap.json, gap.png and gap.svg.
    """
    from aurora_lora.files import check_writable, write_json
    from aurora_lora.report.figures import gap_figure, save
    from aurora_lora.training.deployed import gap as measure
    from aurora_lora.training.trained import load_run

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    _progress()
    with _stderr().status(f"running the forms on the {split} split"):
        found = measure(run, split, examples)
    record = {"run": str(folder), "split": split, **found.to_dict()}
    write_json(target / "gap.json", record)
    written = [target / "gap.json", *save(gap_figure(record), target / "gap")]
    if as_json:
        _print_json({**record, "written": [str(path) for path in written]})
        return
    for table in found.tables():
        _stdout().print(table)
    _stdout().print("wrote " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)


@app.command()
@plain_errors
def export(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the LoRA.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", help="Which form to export; the one that the run deploys by default.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write the adapter as a plain LoRA, exact, for PEFT, vLLM and others: it needs nothing of this package."""
    from aurora_lora.training.deployed import export as export_run
    from aurora_lora.training.trained import load_run

    run = load_run(folder)
    _progress()
    written, used = export_run(run, form, output, dtype=dtype, overwrite=overwrite)
    if as_json:
        _print_json({"folder": str(written), "form": used, "dtype": dtype})
    else:
        print(f"wrote {written}: a plain LoRA adapter, {used} form, {dtype}")


@app.command()
@plain_errors
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Runs, result files, or folders of them.")],
    into: Annotated[
        Path | None, typer.Option("--into", metavar="FILE.md", help="A document with marks for the tables.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the figure forms.png / .svg goes.")
    ] = None,
) -> None:
    """The forms of AuroRA runs by learning rate, as a Markdown table and a figure."""
    from aurora_lora.report.figures import forms_figure, save
    from aurora_lora.report.tables import forms_table, insert, load_results

    results = load_results(runs)
    table = forms_table(results)
    if into is None:
        print(table)
    else:
        insert(into, "forms", table)
        print(f"wrote the table into {into}")
    if output is not None:
        print("wrote " + ", ".join(map(str, save(forms_figure(results), output / "forms"))))


@app.command()
@plain_errors
def predict(
    folder: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A merged model, or the folder of a run.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to judge.")],
    as_json: Json = False,
) -> None:
    """Label texts, with the probability of each label."""
    from aurora_lora.training.trained import predict as answer

    _progress()
    answers = answer(folder, texts)
    if as_json:
        _print_json(answers)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for one in answers:
        if "value" in one:
            table.add_row(f"{one['value']:+.2f}", one["text"])
        else:
            table.add_row(one["label"], f"{100 * one['probability']:.1f}%", one["text"])
    _stdout().print(table)


@app.command()
@plain_errors
def theory(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where theory.json and the figures go.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Check the paper's two propositions and its Appendix C by computation; about a minute.

    With --output, writes theory.json, and the figures as PNG and SVG.
    """
    from rich.progress import Progress

    from aurora_lora.files import check_writable, write_json
    from aurora_lora.report.figures import save
    from aurora_lora.report.theory import sections
    from aurora_lora.report.theory_figures import theory_figures
    from aurora_lora.theory import run, total_steps

    if output is not None:
        check_writable(output)
    console = _stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("searching", total=total_steps())
        record = run(seed, lambda steps: progress.advance(task, steps))
    written: list[Path] = []
    if output is not None:
        write_json(output / "theory.json", record)
        written = [output / "theory.json"]
        for name, figure in theory_figures(record).items():
            written += save(figure, output / name)
    if as_json:
        _print_json({**record, "written": [str(path) for path in written]})
        return
    for section in sections(record):
        _stdout().print(section.title, section.table(), "", highlight=False, markup=False)
    for path in written:
        print(f"  {path}")


# ---------------------------------------------------------------- what there is


@app.command(name="list")
@plain_errors
def list_command(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="tasks, methods, models or recipes.")],
    as_json: Json = False,
) -> None:
    """List the tasks, methods, models or recipes that there are."""
    entries = _LISTS.get(what)
    if entries is None:
        from aurora_lora.errors import UserError
        from aurora_lora.methods.base import unknown

        raise UserError(f"'{what}' is an {unknown('list', _LISTS, what)}")
    rows = entries()
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for row in rows:
        table.add_row(row["name"], row["description"])
    _stdout().print(table if rows else f"no {what} here")


def _tasks() -> list[dict[str, Any]]:
    from aurora_lora.tasks import TASKS

    keys = ("name", "description", "kind", "labels", "metric", "source", "license")
    return [{key: getattr(task, key) for key in keys} for task in TASKS.values()]


def _methods() -> list[dict[str, Any]]:
    from aurora_lora.methods import METHODS

    return [{"name": method.name, "description": method.description} for method in METHODS.values()]


def _models() -> list[dict[str, Any]]:
    from aurora_lora.tasks.models import MODELS

    keys = ("name", "description", "params", "license", "architecture")
    return [{key: getattr(model, key) for key in keys} for model in MODELS.values()]


def _recipes() -> list[dict[str, Any]]:
    """The YAML files under ./recipes; each one's opening comment holds its command, then a description."""
    rows = []
    for path in sorted(Path("recipes").rglob("*.yaml")):
        comment = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            comment.append(line.lstrip("# ").rstrip())
        words = " ".join(line for line in comment[1:] if line)
        rows.append({"name": str(path), "description": words, "command": comment[0] if comment else ""})
    return rows


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tasks": _tasks,
    "methods": _methods,
    "models": _models,
    "recipes": _recipes,
}


# ---------------------------------------------------------------- printing


def _is_main() -> bool:
    """Whether this is the process that prints; there are others under `accelerate launch`."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"))


def _stdout() -> Console:
    return Console(width=WIDTH)


def _stderr() -> Console:
    return Console(stderr=True, quiet=not _is_main())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _complain(text: str) -> None:
    if _is_main():
        print(text, file=sys.stderr)


def _progress() -> Callable[[str], ProgressBar]:
    """Silence the libraries; gives a maker of progress bars."""
    from aurora_lora.training.progress import ProgressBar, quiet_libraries

    quiet_libraries()
    return functools.partial(ProgressBar, _stderr())


def main() -> None:
    """The entry point of the command `aurora`."""
    app()


if __name__ == "__main__":
    main()
