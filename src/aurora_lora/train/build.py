"""What a run trains, from its recipe: the data, the model with the method applied to it, and a trainer for both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, set_seed

from ..data import SplitSizes
from ..data.own.split import Splits
from ..errors import UserError
from ..forms import CALIBRATED
from ..methods import Sample, count_parameters
from ..methods.base import plain_method_errors
from ..methods.parameters import is_head
from ..methods.start import wants_probe
from ..methods.targets import check_modules
from .data import Data, check_data, with_record
from .distributed import on_main, own_part, state
from .finished_run import TrainedRun
from .kinds import kind_of
from .models import (
    PRECISIONS,
    Processor,
    base_for,
    check_positions,
    checkpoint_activations,
    commit_of,
    keep_frozen_in,
    longest_text,
    make_model,
    on_device,
    quantization_of,
    warn_of_another_commit,
)
from .probing import start_for
from .publish import ADAPTER, LOGS, UPDATES
from .recipe import Recipe
from .results import read_result
from .trainer import CalibrationCallback, ExtraCheckpoints, FiniteLoss, WholeCheckpoints, arguments, logger_callbacks
from .updates import UpdateRecorder


def load_data(recipe: Recipe, processor: Processor, scored: Splits | None = None) -> Data:
    """Load and encode all splits of the recipe's task.

    Args:
        recipe: what to train.
        processor: of the model.
        scored: splits to take in place of those of the recipe.

    Raises:
        UserError: a model that cannot do the task, sizes that the data cannot give, or data that cannot be fetched.
    """
    task, section, facts = recipe.task.definition, recipe.task, recipe.task.kind
    if facts.task_type == "CAUSAL_LM" and getattr(processor, "eos_token_id", None) is None:
        raise UserError(
            f"model: '{recipe.model}' is no language model, which {section.name} needs: its tokenizer has no token "
            "that ends a text"
        )
    loaded: Mapping[str, Any] | None = scored
    if loaded is None:
        sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
        loaded = task.load_splits(sizes, section.split_seed, section.test_sets, section.prompt)
    data = kind_of(task).encode(recipe, processor, loaded)
    for name, split in data.splits.items():
        if name != "train" and len(split) < facts.scored_at_least:
            source = getattr(section, f"{name}_data", None) or task.source
            least = f"{facts.name} is scored on {facts.scored_at_least} or more"
            raise UserError(f"{source}: the {name} split has {len(split)} example(s), and {least}")
    return replace(data, record=with_record(data, loaded))


def make_trainer(
    recipe: Recipe,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback] = (),
    adapter: Path | None = None,
    scored: Splits | None = None,
) -> tuple[Trainer, Data]:
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
    settings, kind = recipe.training, kind_of(recipe.task.definition)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    processor = kind.processor(recipe.base if adapter is None else str(adapter))
    data = load_data(recipe if adapter is None else recipe.with_kept_template, processor, scored)
    if adapter is not None and scored is None:
        check_data(adapter.parent, data)
    data = kind.targets(data, recipe)
    options = arguments(recipe, checkpoints, len(data.splits["train"]) if adapter is None else 0)
    set_seed(recipe.seed)  # the head and the adapter start at random
    base = base_for(recipe, processor, data.labels)
    if (longest := longest_text(recipe.task.max_length, processor)) is not None:
        check_positions(base, recipe.model, longest)
    own: list[TrainerCallback] = []
    if adapter is None:
        _check_stored(recipe, base)
        data = kind.scaled(data, base)  # a trained one gives label units
        model = _new_model(recipe, base, data, checkpoints)
        own = _callbacks(recipe, data, checkpoints)
    else:
        if (finished := read_result(adapter.parent)) is not None:
            warn_of_another_commit(adapter.parent, finished, commit_of(base))
        model = make_model(recipe, base, adapter)
    kind.keep_exact(model)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    # Of the body's own weights, trained without a PEFT adapter, the task may use only some, no text reaches the part of
    # a model that sees images, and no gradient a pooler behind hidden states that are learned: then DDP must search.
    own_weights = not hasattr(model, "peft_config") and count_parameters(model).adapter > 0
    is_partly_used = own_weights or recipe.task.teacher is not None
    options["ddp_find_unused_parameters"] = is_partly_used or base.config.get_text_config() is not base.config
    of_method = list(recipe.method.callbacks())
    whole = WholeCheckpoints(checkpoints, of_method)
    every = [ExtraCheckpoints(settings.checkpoint_every), whole, FiniteLoss(), *own, *of_method, *callbacks]
    trainer = kind.trainer(recipe, model, data, options, every)
    trainer.remove_callback(PrinterCallback)  # which prints what is logged, on standard output
    return trainer, data


def _callbacks(recipe: Recipe, data: Data, checkpoints: Path) -> list[TrainerCallback]:
    """What a run records of its training, and how it evaluates on the way."""
    settings, found = recipe.training, list[TrainerCallback]()
    if recipe.method.deployed_form == CALIBRATED:
        found.append(CalibrationCallback(own_share(data, recipe), ridge=recipe.calibration.ridge, at_end=False))
    if settings.save_updates:
        found.append(UpdateRecorder(recipe, checkpoints.parent / UPDATES, own_share(data, recipe)))
    if settings.patience is not None:
        found.append(EarlyStoppingCallback(settings.patience))
    return [*found, *logger_callbacks(settings.report_to, checkpoints.parent / LOGS)]


def own_share(data: Data, recipe: Recipe) -> list[dict[str, Tensor]]:
    """This process's calibration batches: the moments are summed over the processes, none of an example twice."""
    section, peers = recipe.calibration, state().num_processes
    count = min(section.examples, len(data.fixed("train")))
    size = max(1, min(section.batch_size, count // peers))  # a batch for each, where there are examples
    batches = data.calibration_batches(section.model_copy(update={"batch_size": size}))
    return own_part(batches) if count >= peers else batches


def _check_stored(recipe: Recipe, base: Any) -> None:
    """Raise a UserError where a model is stored quantised, and cannot be trained so by the recipe's methods."""
    if recipe.base.quantization is not None or not getattr(base, "is_quantized", False):
        return
    stored = f"'{recipe.model}' is stored quantised ({quantization_of(base.config)})"
    if not base.hf_quantizer.is_trainable:
        raise UserError(f"model: {stored}, in which Transformers trains nothing: name a copy that is not")
    trains_rounded = getattr(base.hf_quantizer, "is_qat_trainable", False) is True  # the weights themselves
    if not trains_rounded and (one := recipe.not_on_quantised) is not None:
        raise UserError(f"method: {one.name!r} is not allowed: {stored}: take an adapter of PEFT on a frozen base")


def _new_model(recipe: Recipe, base: Any, data: Data, checkpoints: Path) -> nn.Module:
    """The recipe's method on a pretrained model, with what it takes from training data before its first step."""
    loss = functools.partial(kind_of(data.task).loss, recipe)
    wants = wants_probe(recipe.method.options)
    start = start_for(recipe, base, data, checkpoints.parent, loss) if wants else None
    if start is not None:
        set_seed(recipe.seed)  # the same whether it was probed for or read
    wanted = start.resolved(recipe) if start else recipe
    if recipe.method.looks:
        if recipe.training.gradient_checkpointing:
            checkpoint_activations(base)
        with plain_method_errors():
            check_modules(base, recipe.method.options)
            sample = sample_of(recipe, data, loss)
            looked = recipe.method.looked(on_device(base), sample, checkpoints)
            wanted = recipe.model_copy(update={"method": looked})
    model = make_model(wanted, base, kept=checkpoints)
    if start is not None:
        start.align(model)
    return model


def sample_of(recipe: Recipe, data: Data, loss: Callable[[nn.Module, Any], Tensor]) -> Sample:
    """The training data that a method may look at."""
    return Sample(
        batches=lambda share: data.training_batches(share, recipe.training.batch_size),
        loss=loss,
        learning_rate=recipe.training.learning_rate,
        seed=recipe.seed,
        examples=len(data.fixed("train")),
        agree=lambda value: on_main(lambda: value),
        in_float16=recipe.training.precision == "fp16",
    )


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
    processor = kind_of(run.task).processor(str(run.folder / ADAPTER))
    base = base_for(recipe, processor, run.labels)
    warn_of_another_commit(run.folder, run.result, commit_of(base))
    return base, processor
