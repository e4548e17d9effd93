"""`train(recipe, output)`: one whole run, from a recipe to an adapter and its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from transformers import TrainerCallback

from .. import files, termination
from ..data.access import check_access
from ..errors import DIVERGED, NotFiniteInputsError, UserError, one_line
from ..finite import check_finite
from ..methods.parameters import marked_random
from . import run_folder, yaml_text
from .batches import divide
from .build import make_trainer, prepare_for
from .calibrating import calibrate_for
from .contamination_guard import check_contamination
from .data import notes
from .data_record import check_files, keep_data
from .distributed import check_shared, draw_apart, on_main, state
from .finished_run import TrainedRun
from .kinds import kind_of
from .loggers import own_runs
from .memory import reset_peak_memory
from .outcome import score, scored_result, write_run
from .reading import load_recipe
from .recipe import Recipe
from .results import Result, lacking, test_sets, with_test_sets, write_result
from .storage import ADAPTER, CHECKPOINTS, RECIPE, REFERENCE, UPDATES

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
    folder, recipe = Path(output), _as_recipe(recipe)
    check_contamination(recipe)
    divide(recipe.training, state().num_processes)  # joins the other processes, if there are any
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(run_folder.open_run(folder, recipe, [folder / UPDATES])))
        check_shared(folder / RECIPE)
        result, was_finished = _train(recipe, folder, make_callbacks)
        reference, reference_recipe = None, recipe.reference_recipe()
        if reference_recipe is not None:
            own = folder / REFERENCE
            on_main(lambda: run_folder.prepare(own, reference_recipe, [own / UPDATES]))
            reference, reference_was = _train(reference_recipe, own, make_callbacks)
            was_finished = was_finished and reference_was
    return TrainedRun(folder, _with_all_scored(recipe, result), result, reference, was_finished)


def _as_recipe(recipe: Recipe | Path | str) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe)
    kind = type(recipe).__name__
    raise TypeError(f"recipe={recipe!r:.80} is a {kind}: it must be a Recipe, or what `load_recipe` takes")


def _with_all_scored(recipe: Recipe, result: Result) -> Recipe:
    """A recipe with the test sets of a run that was finished before, of which it may name but some."""
    scored = test_sets(result)
    if set(scored) <= set(recipe.test_sets):
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": scored})})


def _train(recipe: Recipe, folder: Path, make_callbacks: MakeCallbacks) -> tuple[Result, bool]:
    finished = on_main(lambda: run_folder.finished(folder))
    if finished is not None:
        on_main(lambda: check_files(folder, recipe.task))
        more = lacking(finished, recipe)
        return (_score_more(recipe, folder, finished, more, make_callbacks), False) if more else (finished, True)
    on_main(lambda: check_access(recipe.model))
    reset_peak_memory()
    bars = make_callbacks()
    with own_runs(recipe.training.report_to):
        trainer, data = make_trainer(recipe, folder / CHECKPOINTS, bars)
        on_main(lambda: keep_data(folder, data))
        told = [*notes(data.record or {}), *_notes_of_model(recipe, trainer.module)]
        for bar in bars:
            if told and hasattr(bar, "say"):
                bar.say(told)
        checkpoint = trainer.resume()
        prepare_for(recipe, trainer, data, checkpoint)
        if checkpoint is None:  # each checkpoint has the random state of every process
            draw_apart(recipe.seed)
        if not trainer.has_ended(checkpoint):
            try:
                with termination.deferred():
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except NotFiniteInputsError as error:  # of a calibration before an evaluation
                raise UserError(f"{DIVERGED}: {one_line(error)} Lower training.learning_rate") from error
        trainer.load_best()
        check_finite(trainer.module.named_parameters(), DIVERGED)
        calibrate_for(recipe, trainer, data)
        result = scored_result(recipe, trainer, data)
        on_main(lambda: write_run(recipe, folder, trainer, data, result))
    return result, False


def _notes_of_model(recipe: Recipe, model: nn.Module) -> list[str]:
    return [
        f"{recipe.model} has no weights for {path}: it starts at random, and is trained and saved with the head"
        for path in marked_random(model)
    ]


def _score_more(
    recipe: Recipe,
    folder: Path,
    finished: Result,
    names: Sequence[str],
    make_callbacks: MakeCallbacks,
) -> Result:
    """Score a finished run on further test sets, and write them into its recipe and its result."""
    wanted = recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": tuple(names)})})
    trainer, data = make_trainer(wanted, folder / CHECKPOINTS, make_callbacks(), folder / ADAPTER)
    forms = recipe.method.forms
    scored = {name: score(wanted, trainer, data, name, forms) for name in names}
    kind = kind_of(data.task)
    guessed = {name: kind.guessed(data, name) for name in names}
    always = {name: kind.most_frequent(data, name) for name in names}
    result = with_test_sets(finished, scored, {name: len(data.splits[name]) for name in names}, guessed, always)
    on_main(lambda: files.write_text(folder / RECIPE, yaml_text.dump(result["recipe"])))
    on_main(lambda: write_result(folder, result))
    return result
