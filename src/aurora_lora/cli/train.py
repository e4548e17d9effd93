"""Commands on a recipe: train, pretrain, rank."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from aurora_lora.errors import UserError, abridged, counted
from aurora_lora.files import check_writable, read_json
from aurora_lora.machine import launched_as_main

from .common import (
    Json,
    Overrides,
    RecipeName,
    UsageError,
    complain,
    make_models,
    note,
    print_json,
    print_tables,
    progress_bars,
    quiet,
    stderr,
    stdout,
    write_measured,
)

if TYPE_CHECKING:
    from aurora_lora.train.finished_run import TrainedRun
    from aurora_lora.train.recipe import Recipe, RunRecipe
    from aurora_lora.train.trainer import ProgressBar


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; must be given to train.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the data; print size, memory and time.")] = False,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="GPU of the dry run; by default this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune, choose the best epoch, calibrate, and score every form.

    Writes DIR/adapter/ with its model card, DIR/lora/ (an AuroRA adapter as a plain LoRA), DIR/result.json and
    DIR/recipe.yaml; a run of image generation also images. Interrupted at any moment, the same command resumes
    from the last checkpoint. A finished run is shown again.
    """
    if output is None and not dry_run:
        raise UsageError("Missing option '--output' / '-o'.")
    if gpu is not None and not dry_run:
        raise UserError("--gpu goes with --dry-run")
    with stderr().status(f"looking up {recipe}") as status:
        found = _found(recipe)
        found.values()  # a file that is not there, or no YAML, is said before what takes long
        status.update("loading PyTorch and Transformers")
        from aurora_lora.diffusion.recipe import load_found
        from aurora_lora.train.recipe import Recipe

    plan = load_found(found, overrides or ())
    if output is None or dry_run:
        _show_plan(plan, output, gpu, as_json)
        return
    is_subject = not isinstance(plan, Recipe)
    run: Any = _train(plan, output) if isinstance(plan, Recipe) else _train_subject(plan, output)
    if not launched_as_main():
        return
    if as_json:
        paths = [str(path) for path in run.written]
        print_json({"result": run.result, "reference": run.reference, "written": paths})
        return
    if run.was_finished:
        note(f"{output} holds this run, finished: nothing to train")
    if is_subject:
        from aurora_lora.diffusion.finished_run import print_subject_run as show
    else:
        from aurora_lora.train.finished_run import print_run as show
    show(stdout(), run)


def _found(recipe: str) -> Any:
    """A recipe by its name or file; the paper's cells are looked up where it is neither."""
    from aurora_lora.train.recipe_files import ENDINGS, find_recipe

    if "/" not in recipe or recipe.endswith(ENDINGS):
        with suppress(UserError):
            return find_recipe(recipe)
    from aurora_lora.lab.experiments.recipes import find

    return find(recipe, "recipe")


def _train(plan: Recipe, output: Path) -> TrainedRun:
    """`aurora train` for all but subject-driven generation."""
    from aurora_lora.data.models import is_missing
    from aurora_lora.train.publish import RESULT
    from aurora_lora.train.run import load_splits
    from aurora_lora.train.run import train as run_recipe

    quiet()
    if is_missing(plan.model):
        load_splits(plan)  # whose mistakes come before minutes of pretraining
    make_models([plan.model])
    status = stderr().status(f"loading {plan.model} and the data of {plan.task_title}")
    with status, progress_bars() as bar:

        def make_callbacks() -> list[ProgressBar]:
            is_reference = plan.reference is not None and (output / RESULT).exists()
            shown = bar(plan.reference.method.name if plan.reference and is_reference else plan.method.name)
            shown.before = status.stop
            return [shown]

        return run_recipe(plan, output, make_callbacks=make_callbacks)


def _train_subject(plan: Any, output: Path) -> Any:
    """`aurora train` for subject-driven generation."""
    from aurora_lora.diffusion.pipeline import quiet as quiet_diffusers

    quiet_diffusers()
    from aurora_lora.diffusion.run import train_subject

    return train_subject(plan, output, stderr())


def _show_plan(plan: RunRecipe, output: Path | None, gpu: str | None, as_json: bool) -> None:
    """`aurora train --dry-run`: what the run of a recipe will be."""
    quiet()
    from aurora_lora.lab.experiments.dry_run import dry_run, run_rows

    with stderr().status(f"loading the data of {plan.task_title}"):
        record = dry_run(
            plan, gpu, output, lambda lines: complain("\n".join(f"{plan.method.name}: {one}" for one in lines))
        )
    if not launched_as_main():
        return
    if as_json:
        print_json(record)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in run_rows(record):
        table.add_row(name, value)
    stdout().print(table)


def pretrain(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Such as vit-fashion-mnist; see `aurora list models`.")],
    as_json: Json = False,
) -> None:
    """Train a small base model that cannot be downloaded, once, into the cache.

    `aurora train` and `aurora reproduce` do it where it is needed. Interrupted, the same command resumes from the last
    checkpoint.
    """
    from aurora_lora.train.models import RESULT_OF_PRETRAINING
    from aurora_lora.train.run import pretrain as make

    quiet()
    with progress_bars() as bar:
        shown = bar(name)
        folder = make(name, make_callbacks=lambda: [shown])
    result = read_json(folder / RESULT_OF_PRETRAINING)
    if as_json:
        print_json({"folder": str(folder), "result": result})
        return
    from aurora_lora.data.metrics import in_order
    from aurora_lora.forms import MERGED
    from aurora_lora.train.finished_run import examples_scored

    scores = result["metric"]["by_form"][MERGED]
    values = ", ".join(f"{metric.heading} {metric.shown(scores[metric.name])}" for metric in in_order(scores))
    print(f"{name} on {result['task']}, {examples_scored(result)}: {values}")
    print(f"wrote {folder}")


def rank(
    recipe: RecipeName,
    overrides: Overrides = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", metavar="N", min=1, help="Weights of A and B to share out. Default: the recipe's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for ranks.json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Where an adapter's weights would do most: ranks by the loss's gradient, before any training.

    One probing pass over training examples, then tables of the gradient's spectrum and of what the budget buys, and the
    method as YAML, for a recipe. `method: {budget: N}` in a recipe does the same within its run, where `target_modules`
    limits what the budget is spent on; `--budget` looks at all linear layers, unless the recipe has a budget itself.
    """
    from aurora_lora.lab.experiments.recipes import load_any
    from aurora_lora.lab.report.measured import RANKS, ranks_tables
    from aurora_lora.train import recipe_files
    from aurora_lora.train.recipe import Recipe

    plan = load_any(recipe, overrides or ())
    if not isinstance(plan, Recipe):
        raise UserError("task.name: rank needs a task with labels, not subject-driven generation")
    if output is not None:
        check_writable(output)
    quiet()
    make_models([plan.model])
    from aurora_lora.train.measuring import ranking

    with stderr().status("probing"):
        record = ranking(plan, budget)
    if record["left_out"]:
        note(f"method.{', method.'.join(record['left_out'])}: left out, the budget decides on modules and ranks")
    if without := record["without_gradient"]:
        note(f"{counted(len(without), 'layer')} got no gradient, and so no rank: {abridged(without, 3)}")
    if output is not None:
        write_measured(output / RANKS, record, {}, "", as_json)
    elif as_json:
        print_json(record)
    if not as_json:
        print_tables(ranks_tables(record))
        print(recipe_files.dump({"method": record["method"]}), end="")
