"""What a run trains, from its recipe: the model with the method applied to it, and the trainer around it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from ..data.own.split import Splits
from ..deploy.probe import Loss
from ..errors import UserError
from ..forms import CALIBRATED
from ..methods import Sample, count_parameters
from ..methods.apply import apply_method, plain_method_errors
from ..methods.base import load_finite
from ..methods.parameters import is_head
from ..methods.targets import check_modules
from .base_commit import commit_of, warn_of_another_commit
from .batches import Share, divide
from .calibrating import own_share
from .callback import CalibrationCallback
from .data import Data, load_data
from .data_record import check_data
from .distributed import on_main, state
from .finished_run import TrainedRun
from .loggers import logger_callbacks
from .memory import PRECISIONS, base_for, checkpoint_activations, frozen_dtype, keep_frozen_in
from .model_inputs import Processor, check_positions, longest_text
from .models import load_processor, quantization_of
from .probing import start_for
from .quantized_base import probed
from .recipe import Recipe
from .results import read_result
from .storage import ADAPTER, LOGS, UPDATES
from .trainer import RecipeTrainer, training_arguments
from .updates import UpdateRecorder


def make_trainer(
    recipe: Recipe,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback] = (),
    adapter: Path | None = None,
    scored: Splits | None = None,
) -> tuple[RecipeTrainer, Data]:
    """The data, the model with the recipe's method applied to it, and a trainer for both.

    Args:
        recipe: what to train.
        checkpoints: folder of the checkpoints.
        callbacks: further Trainer callbacks.
        adapter: where to load a trained adapter from, instead of starting a new one.
        scored: what such an adapter is to be scored on, in place of the recipe's own splits.

    Raises:
        UserError: what the recipe names cannot be had, or the method does not fit the model.
    """
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    processor = load_processor(recipe.base if adapter is None else str(adapter), recipe.task.definition)
    kind = recipe.task.kind
    data = _data(recipe, processor, adapter, scored)
    settings = recipe.training
    # a loaded model takes no steps: where one split alone is scored, Trainer gets that for the others
    (some, *_) = data.splits.values()
    train, validation = (data.splits.get(name, some) for name in ("train", "validation"))
    share = Share(settings.batch_size, 1) if adapter else divide(settings, state().num_processes)
    args = training_arguments(recipe, share, checkpoints, len(train), recipe.selected_by)
    set_seed(recipe.seed)  # the head and the adapter start at random
    base = base_for(recipe, data.task, processor, data.labels)
    if adapter is None:  # a trained one gives label units
        _check_stored(recipe, base)
        data = kind.standardised(data, base)
    elif (finished := read_result(adapter.parent)) is not None:
        warn_of_another_commit(adapter.parent, finished, commit_of(base))
    if (longest := longest_text(recipe.task.max_length, processor)) is not None:
        check_positions(base, recipe.model, longest)

    def trainer_of(model: nn.Module, callbacks: Sequence[TrainerCallback] = ()) -> RecipeTrainer:
        return kind.trainer(data)(
            recipe,
            checkpoints,
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=data.collate,
            compute_metrics=lambda scored: kind.compute_metrics(data.task, scored.predictions, scored.label_ids),
            callbacks=list(callbacks),
        )

    @functools.cache
    def loss() -> Loss:
        with probed(base):
            return trainer_of(base).loss_of

    model = _new_model(recipe, base, data, loss, checkpoints) if adapter is None else make_model(recipe, base, adapter)
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(model)
    # Of the body's own weights, trained without a PEFT adapter, the task may use only some, no text reaches the part of
    # a model that sees images, and no gradient a pooler behind hidden states that are learned: then DDP must search.
    own_weights = not hasattr(model, "peft_config") and count_parameters(model).adapter > 0
    is_partly_used = own_weights or recipe.task.teacher is not None
    args.ddp_find_unused_parameters = is_partly_used or base.config.get_text_config() is not base.config
    if adapter is None:
        callbacks = [*_of_training(recipe, data, checkpoints.parent), *callbacks]
    return trainer_of(model, [*kind.callbacks(data), *recipe.method.callbacks(), *callbacks]), data


def _check_stored(recipe: Recipe, base: Any) -> None:
    """Raise a UserError where a model is stored quantised, and cannot be trained so by the recipe's methods."""
    if recipe.base.quantization is not None or not getattr(base, "is_quantized", False):
        return
    stored = f"'{recipe.model}' is stored quantised ({quantization_of(base.config)})"
    if not base.hf_quantizer.is_trainable:
        raise UserError(f"model: {stored}, in which Transformers trains nothing: name a copy that is not")
    if getattr(base.hf_quantizer, "is_qat_trainable", False) is True:  # the weights themselves, rounded at each step
        return
    if (one := recipe.not_on_quantised) is not None:
        raise UserError(f"method: {one.name!r} is not allowed: {stored}: take an adapter of PEFT on a frozen base")


def _data(recipe: Recipe, processor: Processor, adapter: Path | None, scored: Splits | None) -> Data:
    """The data as the kind of task trains on them: those that a trained adapter had, or what it is to be scored on."""
    data = load_data(recipe if adapter is None else recipe.with_kept_template, processor, scored)
    if adapter is not None and scored is None:
        check_data(adapter.parent, data)
    return recipe.task.kind.with_targets(data, recipe)


def _new_model(recipe: Recipe, base: Any, data: Data, loss: Callable[[], Loss], checkpoints: Path) -> nn.Module:
    """The recipe's method on a pretrained model, with what it takes from training data before its first step."""
    start = start_for(recipe, base, data, checkpoints.parent, loss)
    if start is not None:
        set_seed(recipe.seed)  # the same whether it was probed for or read
    wanted = start.resolved(recipe) if start else recipe
    if recipe.method.looks:
        wanted = _looked(recipe, base, data, loss, checkpoints)
    model = make_model(wanted, base, kept=checkpoints)
    if start is not None:
        start.align(model)
    return model


def _of_training(recipe: Recipe, data: Data, folder: Path) -> Iterator[TrainerCallback]:
    """What a run records of its training, and how it evaluates on the way."""
    if recipe.method.deployed_form == CALIBRATED:
        yield CalibrationCallback(own_share(data, recipe), ridge=recipe.calibration.ridge, at_end=False)
    if recipe.training.save_updates:
        yield UpdateRecorder(recipe, folder / UPDATES, own_share(data, recipe))
    yield from logger_callbacks(recipe.training.report_to, folder / LOGS)


def _looked(recipe: Recipe, base: Any, data: Data, loss: Callable[[], Loss], kept: Path) -> Recipe:
    """The recipe, its method with what it takes from training data before it is applied."""
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(base)
    sample = _sample(recipe, data, lambda model, batch: loss()(model, batch))
    with plain_method_errors():
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
        in_float16=recipe.training.precision == "fp16",
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
        model = apply_method(recipe.method, base, recipe.task.kind.task_type, kept)
    else:
        model = load_finite(recipe.method, base, adapter)
    if recipe.method.base_use == "start":
        keep_frozen_in(frozen_dtype(recipe), pretrained)
    return model


def load_trained_model(run: TrainedRun, *, rounded: bool = False) -> tuple[nn.Module, Processor]:
    """The model of a finished run as its recipe keeps it, and its tokenizer or image processor.

    Args:
        run: which.
        rounded: keep the body's own weights in the recipe's precision where they were trained, too; for answers alone.

    Raises:
        UserError: one of them cannot be loaded.
    """
    base, processor = base_of(run, run.recipe)
    body = [parameter for name, parameter in base.named_parameters() if not is_head(base, name)]
    model = make_model(run.recipe, base, run.folder / ADAPTER)
    if rounded:
        model.requires_grad_(False)
        keep_frozen_in(PRECISIONS[run.recipe.training.precision], body)
    return model, processor


def base_of(run: TrainedRun, recipe: Recipe) -> tuple[PreTrainedModel, Processor]:
    """The pretrained model of a finished run as this recipe keeps it, and the run's tokenizer or image processor.

    Raises:
        UserError: one of them cannot be loaded.
    """
    processor = load_processor(str(run.folder / ADAPTER), run.task)
    base = base_for(recipe, run.task, processor, run.labels)
    warn_of_another_commit(run.folder, run.result, commit_of(base))
    return base, processor


def prepare_for(recipe: Recipe, trainer: RecipeTrainer, data: Data, checkpoint: Path | None) -> None:
    """Let the method decide from training data what is trained, or take that from the checkpoint of a run that goes on.

    Raises:
        UserError: what the method decided on does not fit the model.
    """
    if checkpoint is None:
        recipe.method.prepare(trainer.module, _sample(recipe, data, trainer.loss_of))
    else:
        recipe.method.restore(trainer.module, checkpoint)
