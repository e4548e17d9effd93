"""`train(recipe, output)`: one whole run, from a recipe to an adapter and its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState

from .. import files, termination
from ..data import TASKS
from ..data.models import check_access
from ..deploy import calibrate, export_lora
from ..errors import DIVERGED, NotFiniteInputsError, UserError, one_line
from ..forms import CALIBRATED, form_named
from ..methods import count_parameters
from ..methods.aurora import AuroraMethod
from ..methods.base import edit_config
from ..methods.parameters import marked_random
from ..values import check_finite
from . import card
from .build import make_trainer, own_share, sample_of
from .data import Data, check_files, keep_data, notes
from .distributed import check_shared, on_main, reset_peak_memory, state
from .finished_run import TrainedRun, merge_note
from .kinds import kind_of
from .models import commit_of, exact_modules, padding_of
from .publish import (
    ADAPTER,
    CHECKPOINTS,
    RECIPE,
    REFERENCE,
    RESULT,
    UPDATES,
    finish,
    last_intact,
    open_run,
    prepare,
    remove_checkpoints,
    write_lora,
)
from .recipe import Recipe, divide, load_recipe
from .recipe_files import dump
from .results import Result, Scores, build_result, epochs_from_log, lacking, read_result, test_sets, with_test_sets
from .trainer import WholeCheckpoints, has_stopped_early, is_calibrated, own_runs

MakeCallbacks = Callable[[], Sequence[TrainerCallback]]
"""Makes Trainer callbacks, new ones for each training."""


def train(recipe: Recipe | Path | str, output: Path | str, *, make_callbacks: MakeCallbacks = tuple) -> TrainedRun:
    """Fine-tune, choose the best epoch, calibrate, score every form; go on with an interrupted run.

    Writes `recipe.yaml`, `adapter/` with its model card, and `result.json` into `output`; for images also
    `splits.json`, which one went where; for AuroRA also `lora/`, the deployed form as a plain LoRA; and the run of the
    recipe's reference into `output/reference`. A finished run is read, not trained again; test
    sets that it has no scores of are scored.

    Args:
        recipe: what to do; or what `load_recipe` takes, a YAML file or the name of a packaged recipe.
        output: folder of the run.
        make_callbacks: makes further Trainer callbacks, such as a progress bar; called once for the run, and once for
            that of the reference.

    Returns:
        The run, for `evaluate`, `merge` and the others.

    Raises:
        TypeError: the recipe is none.
        UserError: the folder holds another recipe's run, cannot be written, or is not one for all processes; what the
            recipe names cannot be had; a step's examples cannot be divided among the processes; the training diverged.
    """
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    if not isinstance(recipe, Recipe):
        kind = type(recipe).__name__
        raise TypeError(f"recipe={recipe!r:.80} is a {kind}: it must be a Recipe, or what `load_recipe` takes")
    folder = Path(output)
    check_contamination(recipe)
    divide(recipe.training, state().num_processes)  # joins the other processes, if there are any
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(open_run(folder, recipe, [folder / UPDATES])))
        check_shared(folder / RECIPE)
        result, was_finished = _train(recipe, folder, make_callbacks)
        reference, other = None, recipe.reference_recipe()
        if other is not None:
            on_main(lambda: prepare(folder / REFERENCE, other, ()))
            reference, reference_was = _train(other, folder / REFERENCE, make_callbacks)
            was_finished = was_finished and reference_was
    # a run that was finished before may have been scored on more test sets than the recipe names
    task = recipe.task.model_copy(update={"test_sets": test_sets(result)})
    return TrainedRun(folder, recipe.model_copy(update={"task": task}), result, reference, was_finished)


def trained_on(recipe: Recipe) -> list[str]:
    """The tasks that a model trained by a recipe has seen, those of its base model first."""
    earlier = (merge_note(files.expanded(recipe.model)) or {}).get("trained_on", [])
    return list(dict.fromkeys([*earlier, recipe.task_title]))


def check_contamination(recipe: Recipe) -> None:
    """Raise a UserError if the recipe's model was trained on a task that the recipe's must not be mixed with: a model
    that has learned a test's questions must not be tested."""
    *earlier, task = trained_on(recipe)
    for before in earlier:
        if task in TASKS and before in TASKS[task].never_after:
            raise UserError(
                f"model: {recipe.model} was trained on {before}, which holds examples that {task} trains on or tests "
                "with: its scores would mean nothing; start from another model"
            )


def _train(recipe: Recipe, folder: Path, make_callbacks: MakeCallbacks) -> tuple[Result, bool]:
    """The result of a run, and whether it was finished before."""
    checkpoints, bars = folder / CHECKPOINTS, make_callbacks()
    finished = on_main(lambda: read_result(folder))
    if finished is not None:
        on_main(lambda: remove_checkpoints(checkpoints))  # which a kill after the writing of the result has left
        on_main(lambda: check_files(folder, recipe.task))
        more = lacking(finished, recipe)
        return (_score_more(recipe, folder, finished, more, bars), False) if more else (finished, True)
    on_main(lambda: check_access(recipe.model))
    reset_peak_memory()
    with own_runs(recipe.training.report_to):
        trainer, data = make_trainer(recipe, checkpoints, bars)
        model: Any = trainer.model
        on_main(lambda: keep_data(folder, data))
        told = [*notes(data.record or {}), *_notes_of_model(recipe, model)]
        for bar in bars:
            if told and hasattr(bar, "say"):
                bar.say(told)
        whole = next(one for one in trainer.callback_handler.callbacks if isinstance(one, WholeCheckpoints))
        checkpoint = on_main(lambda: last_intact(checkpoints))
        if checkpoint is None:
            loss = kind_of(data.task).loss
            recipe.method.prepare(model, sample_of(recipe, data, lambda model, batch: loss(recipe, model, batch)))
        else:
            whole.resume(checkpoint)
            recipe.method.restore(model, checkpoint)
            before = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if has_stopped_early(before, recipe.training.patience):
                trainer.args.num_train_epochs = int(before.epoch or 0)  # nothing more is trained
        try:
            with termination.deferred(), files.plain_write_errors(checkpoints):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except NotFiniteInputsError as error:  # of a calibration before an evaluation
            raise UserError(f"{DIVERGED}: {one_line(error)} Lower training.learning_rate") from error
        if trainer.state.best_model_checkpoint is None:
            raise UserError(f"{DIVERGED}: the validation {recipe.selected_by} was never a number")
        check_finite(model.named_parameters(), DIVERGED)
        if CALIBRATED in recipe.method.forms and not is_calibrated(model):  # where it is deployed, the best one is
            with trainer.accelerator.autocast():  # the model has it of its own only where something was trained
                calibrate(model, own_share(data, recipe), ridge=recipe.calibration.ridge)
        result = _scored(recipe, trainer, data, whole)
        kind_of(data.task).finish(model, data)
        on_main(lambda: _write(recipe, folder, model, data, result))
    return result, False


def _notes_of_model(recipe: Recipe, model: nn.Module) -> list[str]:
    return [
        f"{recipe.model} has no weights for {path}: it starts at random, and is trained and saved with the head"
        for path in marked_random(model)
    ]


# ---------------------------------------------------------------- scores


def score(recipe: Recipe, trainer: Trainer, data: Data, split: str, forms: Sequence[str]) -> Scores:
    """Metrics of each form on a split."""
    scores = {}
    for form in forms:
        with recipe.method.using(trainer.model, form):  # type: ignore[arg-type]
            scores[form] = kind_of(data.task).evaluate(trainer, data, split)
    return scores


def _scored(recipe: Recipe, trainer: Trainer, data: Data, whole: WholeCheckpoints) -> Result:
    """The result of a trained run: every form scored on the validation split and the test sets, and what it took."""
    kind, task, ended = kind_of(data.task), data.task, trainer.state
    epochs = epochs_from_log(ended.log_history, kind.facts.metric_names(task))
    best = next(entry for entry in epochs if entry["step"] == ended.best_global_step)
    names = dict.fromkeys(("validation", *recipe.test_sets))
    scored = {name: score(recipe, trainer, data, name, recipe.method.forms) for name in names}
    return build_result(
        recipe,
        model_commit=commit_of(trainer.model),  # type: ignore[arg-type]
        metric=kind.reported(recipe.task),
        split=task.reported_split,
        examples={name: len(data.fixed(name)) for name in data.splits},
        validation=scored["validation"],
        test={name: scored[name] for name in recipe.test_sets},
        chance={name: kind.guessed(data, name) for name in recipe.test_sets},
        most_frequent={name: kind.most_frequent(data, name) for name in recipe.test_sets},
        selected_by={
            "split": "validation",
            "form": recipe.method.deployed_form,
            "name": recipe.selected_by,
            "value": best["validation"][recipe.selected_by],
            "epoch": best["epoch"],
        },
        params=count_parameters(trainer.model),  # type: ignore[arg-type]
        train_s=whole.seconds,
        trained_examples=round(len(data.fixed("train")) * (ended.epoch or 0)),
        peak_mb=whole.measure_memory(),
        processes=trainer.args.world_size,
        epochs=epochs,
        labels=() if task.labels else data.labels,
        data=data.record,
        before=kind.before(recipe, trainer, data),
        samples=kind.samples(recipe, trainer, data),
    )


def _score_more(
    recipe: Recipe, folder: Path, finished: Result, names: Sequence[str], bars: Sequence[TrainerCallback]
) -> Result:
    """Score a finished run on further test sets, and write them into its recipe and its result."""
    wanted = recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": tuple(names)})})
    trainer, data = make_trainer(wanted, folder / CHECKPOINTS, bars, folder / ADAPTER)
    kind = kind_of(data.task)
    result = with_test_sets(
        finished,
        {name: score(wanted, trainer, data, name, recipe.method.forms) for name in names},
        {name: len(data.splits[name]) for name in names},
        {name: kind.guessed(data, name) for name in names},
        {name: kind.most_frequent(data, name) for name in names},
    )
    on_main(lambda: files.write_text(folder / RECIPE, dump(result["recipe"])))
    on_main(lambda: files.write_json(folder / RESULT, result))
    return result


# ---------------------------------------------------------------- what is written


def _write(recipe: Recipe, folder: Path, model: Any, data: Data, result: Result) -> None:
    """The plain LoRA, the adapter and the result."""
    facts = card.Facts(recipe, data.task, result, padding_of(model.config), exact_modules(model.config))
    form, no_lora = recipe.method.deployed_form, None

    def save_lora(partial: Path) -> None:
        export_lora(model, partial, form, processor=data.processor, base_name=facts.base)  # type: ignore[arg-type]
        name_revision(partial, recipe)
        card.write_lora_card(partial, facts, form)

    def save(adapter: Path) -> None:
        recipe.method.save(model, adapter)
        data.processor.save_pretrained(str(adapter))
        edit_config(adapter, tidy)
        name_revision(adapter, recipe)
        card.write_adapter_card(adapter, facts, no_lora)

    def tidy(settings: dict[str, Any]) -> None:
        """Name the base model as other machines know it, and each module once."""
        named = list(dict.fromkeys(settings.get("modules_to_save") or ())) or None
        settings |= {"base_model_name_or_path": facts.base, "modules_to_save": named}

    if isinstance(recipe.method, AuroraMethod):
        no_lora = "`eval()` computes the dynamic form, which is no linear map"
        if form_named(form).mergeable:
            no_lora = write_lora(folder, save_lora)
    finish(folder, result, save)


def name_revision(adapter: Path, recipe: Recipe) -> None:
    """Name the revision of the base model, where a recipe has one, in an adapter's settings: for `AutoPeftModel`."""
    if (revision := recipe.base.revision) is not None:
        edit_config(adapter, lambda settings: settings.update(revision=revision))
