"""Commands that train: train, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_lora.errors import UserError
from aurora_lora.machine import launched_as_main

from .common import Json, RecipeName, Stages, importing, make_models, progress_bars, quiet
from .dry_run import show
from .help import UsageError
from .printing import note, print_json, stderr, stdout

if TYPE_CHECKING:
    from aurora_lora.train.finished_run import TrainedRun
    from aurora_lora.train.progress import ProgressBar
    from aurora_lora.train.recipe import Recipe


def train(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as training.epochs=1."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; must be given to train.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, but no images of a subject; print size, memory, time.")
    ] = False,
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
    with Stages() as stage:
        stage(f"looking up {recipe}")
        with importing():
            from aurora_lora.lab.experiments.recipes import find

            found = find(recipe, "recipe")
        found.values()  # a file that is not there, or no YAML, is said before what takes long
        stage("loading PyTorch and Transformers")
        with importing():
            from aurora_lora.lab.experiments.recipe_kinds import load_found
            from aurora_lora.train.recipe import Recipe

        plan = load_found(found, overrides or ())
        if output is None or dry_run:
            show(plan, output, gpu, as_json, stage)
            return
        run = _train(plan, output, stage) if isinstance(plan, Recipe) else None
    if run is None:
        _train_subject(plan, output, as_json)
        return
    if not launched_as_main():
        return
    from aurora_lora.train.finished_run import print_run

    if as_json:
        paths = [str(path) for path in run.written]
        print_json({"result": run.result, "reference": run.reference, "written": paths})
        return
    _note_finished(run, output)
    print_run(stdout(), run)


def _train(plan: Recipe, output: Path, stage: Stages) -> TrainedRun:
    """`aurora train` for all but subject-driven generation."""
    quiet()
    stage.done()
    make_models([plan.model])
    stage(f"loading {plan.model} and the data of {plan.task_title}")
    with importing():
        from aurora_lora.train.publish import RESULT
        from aurora_lora.train.run import train as run_recipe

    with progress_bars() as bar:

        def make_callbacks() -> list[ProgressBar]:
            is_reference = plan.reference is not None and (output / RESULT).exists()
            shown = bar(plan.reference.method.name if plan.reference and is_reference else plan.method.name)
            shown.before = stage.done
            return [shown]

        return run_recipe(plan, output, make_callbacks=make_callbacks)


def _train_subject(plan: Any, output: Path, as_json: bool) -> None:
    """`aurora train` for subject-driven generation."""
    from aurora_lora.diffusion.progress import Bars
    from aurora_lora.diffusion.progress import quiet as quiet_diffusers

    quiet_diffusers()
    from aurora_lora.diffusion.run import train_subject
    from aurora_lora.diffusion.summary import print_subject_run, written

    bars = Bars(stderr())
    try:
        run = train_subject(plan, output, bars)
    finally:
        bars.stop()
    if not launched_as_main():
        return
    if as_json:
        print_json({"result": run.result, "reference": None, "written": [str(path) for path in written(run)]})
        return
    _note_finished(run, output)
    print_subject_run(stdout(), run)


def _note_finished(run: Any, output: Path) -> None:
    if run.was_finished:
        note(f"{output} holds this run, finished: nothing to train")


def pretrain(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Such as vit-fashion-mnist; see `aurora list models`.")],
    as_json: Json = False,
) -> None:
    """Train a small base model that cannot be downloaded, once, into the cache.

    `aurora train` and `aurora reproduce` do it where it is needed. Interrupted, the same command resumes from the last
    checkpoint.
    """
    from aurora_lora.files import read_json
    from aurora_lora.train.models import RESULT_OF_PRETRAINING
    from aurora_lora.train.pretraining import pretrain as make

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
    from aurora_lora.train.score_tables import examples_scored

    scores = result["metric"]["by_form"][MERGED]
    values = ", ".join(f"{metric.heading} {metric.shown(scores[metric.name])}" for metric in in_order(scores))
    print(f"{name} on {result['task']}, {examples_scored(result)}: {values}")
    print(f"wrote {folder}")


COMMANDS = (train, pretrain)
