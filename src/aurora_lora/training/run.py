"""`train(recipe, output)`: one whole run, from a recipe to an adapter and its result."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from aurora_lora import calibrate

from .. import files
from ..deploy.probe import Loss
from ..errors import DIVERGED, CheckpointError, UserError
from ..finite import check_finite
from ..forms import CALIBRATED
from ..methods import Sample, count_parameters
from ..methods.base import TaskType, load_finite
from ..methods.start import wants_probe
from ..methods.targets import check_modules
from ..tasks.access import check_access
from . import storage, yaml_text
from .batches import Share, divide
from .callback import CalibrationCallback, is_calibrated
from .contamination_guard import check_contamination
from .data import Data, load_data, notes
from .data_record import check_data, check_files, keep_data
from .distributed import on_main, state
from .finished_run import TrainedRun
from .loggers import logger_callbacks
from .memory import base_for, checkpoint_activations, frozen_dtype, keep_frozen_in, reset_peak_memory
from .models import Processor, check_positions, load_processor
from .outcome import chance, score, scored_result, write_run
from .probing import start_for
from .recipe import Recipe, RunRecipe
from .results import (
    Result,
    lacking,
    read_result,
    with_test_sets,
    write_result,
)
from .storage import ADAPTER, CHECKPOINTS, LOGS, RECIPE, REFERENCE, RESULT, UPDATES
from .trainer import RecipeTrainer, training_arguments
from .updates import UpdateRecorder


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    result: Result
    reference: Result | None
    was_finished: bool
    """The run was finished before: nothing was trained."""


def train(recipe: Recipe, output: Path | str, callbacks: Callable[[], Sequence[TrainerCallback]] = tuple) -> Run:
    """Fine-tune, choose the best epoch, calibrate, score every form; go on with an interrupted run.

    Writes `recipe.yaml`, `adapter/` with its model card, and `result.json` into `output`; for images also
    `splits.json`, which one went where; for AuroRA also `lora/`, the deployed form as a plain LoRA; and the run of the
    recipe's reference into `output/reference`. A finished run is read, not trained again; test
    sets that it has no scores of are scored.

    Args:
        recipe: what to do.
        output: folder of the run.
        callbacks: makes further Trainer callbacks, such as a progress bar; called once for each run.

    Raises:
        UserError: the folder holds another recipe's run or cannot be written; what the recipe names cannot be had; a
            step's examples cannot be divided among the processes; the training diverged.
    """
    folder = Path(output)
    check_contamination(recipe)
    divide(recipe.training, state().num_processes)  # joins the other processes, if there are any
    with contextlib.ExitStack() as stack:
        on_main(lambda: _open(folder, recipe, stack))
        result, was_finished = _train(recipe, folder, callbacks)
        reference, reference_recipe = None, recipe.reference_recipe()
        if reference_recipe is not None:
            on_main(lambda: _prepare(folder / REFERENCE, reference_recipe))
            reference, reference_was = _train(reference_recipe, folder / REFERENCE, callbacks)
            was_finished = was_finished and reference_was
    return Run(folder, result, reference, was_finished)


def _open(folder: Path, recipe: Recipe, stack: contextlib.ExitStack) -> None:
    """Check the folder, lock it and write the recipe down."""
    storage.check_recipe(folder, recipe)
    files.check_writable(folder)
    stack.enter_context(storage.lock(folder))
    _prepare(folder, recipe)


def _prepare(folder: Path, recipe: Recipe) -> None:
    storage.check_recipe(folder, recipe)
    files.check_writable(folder)
    for each in (folder, folder / CHECKPOINTS, folder / UPDATES):
        files.clear_leftovers(each)
    text = yaml_text.dump(recipe.resolved())
    path = folder / RECIPE
    # an interrupted run may have had other test sets
    if not (folder / RESULT).exists() and not (path.exists() and path.read_text(encoding="utf-8") == text):
        files.write_text(path, text)


def _train(recipe: Recipe, folder: Path, callbacks: Callable[[], Sequence[TrainerCallback]]) -> tuple[Result, bool]:
    finished = on_main(lambda: read_result(folder))
    if finished is not None:
        on_main(lambda: check_files(folder, recipe.task))
        on_main(lambda: storage.remove_checkpoints(folder / CHECKPOINTS))  # left by a kill after the result was written
        more = lacking(finished, recipe)
        return (_score_more(recipe, folder, finished, more, callbacks), False) if more else (finished, True)
    on_main(lambda: check_access(recipe.model))
    reset_peak_memory()
    bars = callbacks()
    trainer, data = make_trainer(recipe, folder / CHECKPOINTS, bars)
    on_main(lambda: keep_data(folder, data))
    for bar in bars:
        if data.record is not None and hasattr(bar, "say"):
            bar.say(notes(data.record))
    checkpoint = trainer.resume()
    prepare_for(recipe, trainer, data, checkpoint)
    if not trainer.has_ended(checkpoint):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.load_weights(trainer.best_checkpoint())
    check_finite(trainer.module.named_parameters(), DIVERGED)
    calibrate_for(recipe, trainer, data)
    result = scored_result(recipe, trainer, data)
    on_main(lambda: write_run(recipe, folder, trainer, data, result))
    return result, False


def _score_more(
    recipe: Recipe,
    folder: Path,
    finished: Result,
    names: Sequence[str],
    callbacks: Callable[[], Sequence[TrainerCallback]],
) -> Result:
    """Score a finished run on further test sets, and write them into its recipe and its result."""
    wanted = recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": tuple(names)})})
    trainer, data = make_trainer(wanted, folder / CHECKPOINTS, callbacks(), folder / ADAPTER)
    forms = recipe.method.forms
    scored = {name: score(wanted, trainer, data, name, forms) for name in names}
    guessed = {name: chance(data, name) for name in names}
    result = with_test_sets(finished, scored, {name: len(data.splits[name]) for name in names}, guessed)
    on_main(lambda: files.write_text(folder / RECIPE, yaml_text.dump(result["recipe"])))
    on_main(lambda: write_result(folder, result))
    return result


def make_trainer(
    recipe: Recipe, checkpoints: Path, callbacks: Sequence[TrainerCallback] = (), adapter: Path | None = None
) -> tuple[RecipeTrainer, Data]:
    """The data, the model with the recipe's method applied to it, and a trainer for both.

    Args:
        recipe: what to train.
        checkpoints: folder of the checkpoints.
        callbacks: further Trainer callbacks.
        adapter: where to load a trained adapter from, instead of starting a new one.

    Raises:
        UserError: what the recipe names cannot be had, or the method does not fit the model.
    """
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    processor = load_processor(recipe.model, recipe.task.definition)
    kind = recipe.task.kind
    data = load_data(recipe, processor)
    if adapter is not None:
        check_data(adapter.parent, data)
    data = kind.with_targets(data, recipe)
    settings = recipe.training
    # a loaded model takes no steps
    share = Share(settings.batch_size, 1) if adapter else divide(settings, state().num_processes)
    args = training_arguments(recipe, share, checkpoints, len(data.splits["train"]), data.task.metric)
    set_seed(recipe.seed)  # the head and the adapter start at random
    base = base_for(recipe, data.task, processor, data.labels)
    if (length := recipe.task.max_length) is not None and isinstance(processor, PreTrainedTokenizerBase):
        check_positions(base, recipe.model, min(length, processor.model_max_length))

    def trainer_of(model: nn.Module, callbacks: Sequence[TrainerCallback] = ()) -> RecipeTrainer:
        return kind.trainer(data)(
            recipe,
            checkpoints,
            model=model,
            args=args,
            train_dataset=data.splits["train"],
            eval_dataset=data.splits["validation"],
            data_collator=data.collate,
            compute_metrics=lambda scored: kind.compute_metrics(data.task, scored.predictions, scored.label_ids),
            callbacks=list(callbacks),
        )

    loss = functools.cache(lambda: trainer_of(base).loss_of)
    start = None if adapter else start_for(recipe, base, data, checkpoints.parent, loss)
    if start is not None:
        set_seed(recipe.seed)  # the same whether it was probed for or read
    wanted = start.resolved(recipe) if start else recipe
    if recipe.method.looks and adapter is None:
        wanted = _looked(recipe, base, data, loss, checkpoints)
    model = make_model(wanted, base, adapter, checkpoints)
    if start is not None:
        start.align(model)
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(model)
    # Of the body's own weights, trained without a PEFT adapter, the task may use only some: then DDP must search.
    args.ddp_find_unused_parameters = not hasattr(model, "peft_config") and count_parameters(model).adapter > 0
    if adapter is None:
        callbacks = [*callbacks, *logger_callbacks(recipe.training.report_to, checkpoints.parent / LOGS)]
    if recipe.training.save_updates:
        callbacks = [UpdateRecorder(recipe, checkpoints.parent / UPDATES, _own_share(data, recipe)), *callbacks]
    if recipe.method.deployed_form == CALIBRATED:
        callbacks = [CalibrationCallback(_own_share(data, recipe), ridge=recipe.calibration.ridge), *callbacks]
    callbacks = [*recipe.method.callbacks(), *callbacks]
    return trainer_of(model, [*kind.callbacks(data), *callbacks]), data


def _looked(recipe: Recipe, base: Any, data: Data, loss: Callable[[], Loss], kept: Path) -> Recipe:
    """The recipe, its method with what it takes from training data before it is applied."""
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(base)
    sample = _sample(recipe, data, lambda model, batch: loss()(model, batch))
    with _plain_method_errors():
        check_modules(base, recipe.method.options)
        return recipe.model_copy(update={"method": recipe.method.looked(base, sample, kept)})


def _sample(recipe: Recipe, data: Data, loss: Loss) -> Sample:
    return Sample(
        batches=lambda share: data.training_batches(share, recipe.training.batch_size),
        loss=loss,
        learning_rate=recipe.training.learning_rate,
        seed=recipe.seed,
        examples=len(data.fixed("train")),
        agree=lambda value: on_main(lambda: value),
    )


def make_model(
    recipe: Recipe, base: PreTrainedModel, adapter: Path | None = None, kept: Path | None = None
) -> nn.Module:
    """The recipe's method on a pretrained model: new, or as it was saved in `adapter`.

    Args:
        recipe: what to train.
        base: the pretrained model.
        adapter: folder of a trained adapter.
        kept: folder for what is costly to compute, and the same when the run goes on.

    Raises:
        UserError: the method does not fit the model, or the saved adapter cannot be read.
        NotFiniteError: the saved adapter holds NaN or infinity.
    """
    pretrained = list(base.parameters())
    if adapter is None:
        model = apply_method(recipe, base, recipe.task.kind.task_type, kept)
    else:
        model = load_finite(recipe.method, base, adapter)
    if recipe.method.base_use == "start":
        keep_frozen_in(frozen_dtype(recipe), pretrained)
    return model


def apply_method(recipe: RunRecipe, base: Any, task_type: TaskType, kept: Path | None = None) -> nn.Module:
    """The recipe's method on a pretrained model.

    Args:
        recipe: what to train.
        base: the pretrained model.
        task_type: of PEFT.
        kept: see `make_model`.

    Raises:
        UserError: the method does not fit the model, or the memory.
    """
    if wants_probe(recipe.method.options) or (recipe.method.looks and kept is None):
        what = "budget and start" if wants_probe(recipe.method.options) else recipe.method.name
        raise UserError(f"method: {what} cannot be used here: this kind of run has no loss on labels")
    with _plain_method_errors():
        check_modules(base, recipe.method.options)
        return recipe.method.apply(base, task_type, kept)


@contextlib.contextmanager
def _plain_method_errors() -> Iterator[None]:
    """What a method says of the model, the memory or a file of the run, as a UserError."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"{' '.join(str(error).split())} Remove it to begin the run again") from error
    except ValueError as error:
        raise UserError(f"method: {' '.join(str(error).split())}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"method: it does not fit the memory: {str(error).splitlines()[0]}") from error


def load_trained_model(run: TrainedRun) -> tuple[nn.Module, Processor]:
    """The model of a finished run as its recipe keeps it, and its tokenizer or image processor.

    Raises:
        UserError: one of them cannot be loaded.
    """
    processor = load_processor(str(run.folder / ADAPTER), run.task)
    base = base_for(run.recipe, run.task, processor, run.labels)
    return make_model(run.recipe, base, run.folder / ADAPTER), processor


def prepare_for(recipe: Recipe, trainer: RecipeTrainer, data: Data, checkpoint: Path | None) -> None:
    """Let the method decide from training data what is trained, or take that from the checkpoint of a run that goes on.

    Raises:
        UserError: what the method decided on does not fit the model.
    """
    if checkpoint is None:
        recipe.method.prepare(trainer.module, _sample(recipe, data, trainer.loss_of))
    else:
        recipe.method.restore(trainer.module, checkpoint)


def calibrate_for(recipe: Recipe, trainer: RecipeTrainer, data: Data) -> None:
    """Calibrate the model as the recipe says, if its method has a calibrated form and its weights came without.

    Where the calibrated form is deployed, a checkpoint has the matrices of the evaluation that it was written at, from
    these same inputs.
    """
    if CALIBRATED in recipe.method.forms and not is_calibrated(trainer.module):
        with trainer.accelerator.autocast():  # the model has it of its own only where something was trained
            calibrate(trainer.module, _own_share(data, recipe), ridge=recipe.calibration.ridge)


def _own_share(data: Data, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """This process's calibration batches: the moments are summed over the processes, none of an example twice."""
    section, peers = recipe.calibration, state()
    count = min(section.examples, len(data.fixed("train")))
    size = max(1, min(section.batch_size, count // peers.num_processes))  # a batch for each, where there are examples
    smaller = section.model_copy(update={"batch_size": size})
    batches = data.calibration_batches(recipe.model_copy(update={"calibration": smaller}))
    return batches[peers.process_index :: peers.num_processes] if count >= peers.num_processes else batches
