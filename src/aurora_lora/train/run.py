"""`train(recipe, output)`: one whole run, from a recipe to an adapter and its result."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict
from scipy.special import softmax
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from .. import files, termination
from ..data import TASKS, SplitSizes
from ..data.loading import plainly
from ..data.metrics import class_scores
from ..data.models import MODELS, PretrainedHere, is_missing
from ..data.own.split import Splits
from ..deploy import InputStatistics, calibrate, export_lora, input_statistics
from ..errors import DIVERGED, NotFiniteInputsError, UserError, one_line, unknown
from ..extras import extra
from ..forms import CALIBRATED, FORMS
from ..methods import Sample, count_parameters
from ..methods.aurora import AuroraMethod
from ..methods.base import edit_config, plain_method_errors
from ..methods.options import added_fields
from ..methods.parameters import check_loaded, is_head, marked_random
from ..methods.start import wants_probe
from ..methods.targets import check_modules
from ..tuner.peft_names import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from ..values import check_finite
from . import card, models, publish
from .data import Data, check_data, check_files, keep_data, notes, with_record
from .finished_run import (
    Result,
    Scores,
    TrainedRun,
    build_result,
    epochs_from_log,
    load_run,
    mean_scores,
    merge_note,
    read_result,
    test_sets,
)
from .kinds import kind_of
from .models import Processor
from .probing import start_for
from .recipe import Recipe, differences, divide, epochs_of, examples_of_a_step, load_recipe, steps_of, validate
from .recipe_files import dump
from .trainer import (
    CalibrationCallback,
    LowerLossOfEqualScores,
    UpdateRecorder,
    WholeCheckpoints,
    arguments,
    has_stopped,
    is_calibrated,
    on_main,
    own_part,
    own_runs,
    reset_peak_memory,
    state,
)

MakeCallbacks = Callable[[], Sequence[TrainerCallback]]
"""Makes Trainer callbacks, new ones for each training."""


def train(recipe: Recipe | Path | str, output: Path | str, *, make_callbacks: MakeCallbacks = tuple) -> TrainedRun:
    """Fine-tune, choose the best epoch, calibrate, score every form; go on with an interrupted run.

    Writes `recipe.yaml`, `adapter/` with its model card, and `result.json` into `output`; for images also
    `splits.json`, which one went where; for AuroRA also `lora/`, the deployed form as a plain LoRA; and the run of the
    recipe's reference into `output/reference`. A finished run is read, not trained again; test sets that it has no
    scores of are scored.

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
        on_main(lambda: stack.enter_context(publish.open_run(folder, recipe, [folder / publish.UPDATES])))
        result, was_finished = _train(recipe, folder, make_callbacks)
        reference, other = None, recipe.reference_recipe()
        if other is not None:
            on_main(lambda: publish.prepare(folder / publish.REFERENCE, other, ()))
            reference, reference_was = _train(other, folder / publish.REFERENCE, make_callbacks)
            was_finished = was_finished and reference_was
    # a run that was finished before may have been scored on more test sets than the recipe names
    task = recipe.task.model_copy(update={"test_sets": test_sets(result)})
    return TrainedRun(folder, recipe.model_copy(update={"task": task}), result, reference, was_finished)


def trained_on(recipe: Recipe) -> list[str]:
    """The tasks that a model trained by a recipe has seen, those of its base model first."""
    earlier = merge_note(files.expanded(recipe.model)).get("trained_on", [])
    before = files.expanded(recipe.method.start_from or "")
    if recipe.method.start_from and (before / publish.RECIPE).is_file():
        earlier = [*earlier, load_run(before).recipe.task_title]
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
    checkpoints, bars = folder / publish.CHECKPOINTS, make_callbacks()
    finished = on_main(lambda: read_result(folder))
    if finished is not None:
        on_main(lambda: publish.remove_checkpoints(checkpoints))  # a kill behind the result has left them
        on_main(lambda: check_files(folder, recipe.task))
        if more := [name for name in recipe.test_sets if name not in test_sets(finished)]:
            return _score_more(recipe, folder, finished, more, bars), False
        return finished, True
    reset_peak_memory()
    with own_runs(recipe.training.report_to, folder / publish.LOGS):
        trainer, data = make_trainer(recipe, checkpoints, bars)
        model: Any = trainer.model
        on_main(lambda: keep_data(folder, data))
        random = "it starts at random, and is trained and saved with the head"
        told = [f"{recipe.model} has no weights for {path}: {random}" for path in marked_random(model)]
        told = [*notes(data.record or {}), *told, *schedule(recipe, len(data.splits["train"]))]
        for bar in bars:
            if told and hasattr(bar, "say"):
                bar.say(told)
        whole = next(one for one in trainer.callback_handler.callbacks if isinstance(one, WholeCheckpoints))
        checkpoint = on_main(lambda: publish.last_intact(checkpoints))
        if checkpoint is None:
            recipe.method.prepare(model, sample_of(recipe, data))
        else:
            whole.resume(checkpoint)
            recipe.method.restore(model, checkpoint)
            before = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if has_stopped(before, recipe.training):  # nothing more is trained
                trainer.args.num_train_epochs, trainer.args.max_steps = int(before.epoch or 0), -1
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
        kept = None
        if rank := recipe.calibration.statistics:
            kept = input_statistics(model, own_share(data, recipe), rank=rank)
        result, wrong = _scored(recipe, trainer, data, whole)
        if wrong is not None:
            on_main(lambda: files.write_json(folder / publish.MISTAKES, wrong))
        kind_of(data.task).finish(model, data)
        on_main(lambda: _write(recipe, folder, model, data, result, kept))
    return result, False


def schedule(recipe: Recipe, examples: int) -> list[str]:
    """A line about how long a training on so many examples is, where the recipe leaves it to their number."""
    training = recipe.training
    if training.epochs is not None or training.max_steps is not None:
        return []
    steps = f"{steps_of(training, examples):,} steps of {min(examples, examples_of_a_step(training)):,} examples"
    return [f"epochs: {epochs_of(training, examples)}, {steps} (training.epochs=N or max_steps=N takes others)"]


# ---------------------------------------------------------------- what is trained


def load_splits(recipe: Recipe) -> Mapping[str, Any]:
    """All splits of the recipe's task, which needs no model; raises a UserError where the data does not fit it."""
    section = recipe.task
    sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
    found: Mapping[str, Any]
    found = section.definition.load_splits(sizes, section.split_seed, section.test_sets, section.prompt)
    return found


def load_data(recipe: Recipe, processor: Processor, loaded: Mapping[str, Any] | None = None) -> Data:
    """All splits of the recipe's task, or those that are loaded, encoded; raises a UserError where the data or the
    model do not fit it."""
    task, section, facts = recipe.task.definition, recipe.task, recipe.task.kind
    if facts.task_type == "CAUSAL_LM" and getattr(processor, "eos_token_id", None) is None:
        why = "its tokenizer has no token that ends a text"
        raise UserError(f"model: '{recipe.model}' is no language model, which {section.name} needs: {why}")
    loaded = load_splits(recipe) if loaded is None else loaded
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
    """A trainer and its data: of a new model with the recipe's method, or of the one that is saved in `adapter`; raises
    a UserError where what the recipe names cannot be had, or does not fit."""
    settings, kind = recipe.training, kind_of(recipe.task.definition)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = load_splits(recipe) if scored is None else scored  # before a model is fetched in vain
    processor = kind.processor(recipe.base if adapter is None else str(adapter))
    data = load_data(recipe if adapter is None else recipe.with_kept_template, processor, loaded)
    if adapter is not None and scored is None:
        check_data(adapter.parent, data)
    data = kind.targets(data, recipe)
    options = arguments(recipe, checkpoints, len(data.splits["train"]) if adapter is None else 0)
    set_seed(recipe.seed)  # the head and the adapter start at random
    base = models.base_for(recipe, processor, data.labels)
    longest, most = models.longest_text(recipe.task.max_length, processor), models.most_tokens(base)
    if longest is not None and most is not None and longest > most:
        raise UserError(f"task.max_length: {longest} tokens are more than the {most} positions of {recipe.model}")
    every: list[TrainerCallback] = []
    if adapter is None:
        _check_stored(recipe, base)
        data = kind.scaled(data, base)  # a trained one gives label units
        model = _new_model(recipe, base, data, checkpoints)
        if recipe.method.deployed_form == CALIBRATED:
            every.append(CalibrationCallback(own_share(data, recipe), ridge=recipe.calibration.ridge, at_end=False))
        if settings.save_updates:
            every.append(UpdateRecorder(recipe, checkpoints.parent / publish.UPDATES, own_share(data, recipe)))
        if settings.patience is not None:
            every.append(EarlyStoppingCallback(settings.patience))
    else:
        model = models.make_model(recipe, base, adapter)
    kind.keep_exact(model)
    if settings.gradient_checkpointing:
        models.checkpoint_activations(model)
    # Of the body's own weights, trained without a PEFT adapter, the task may use only some, no text reaches the part of
    # a model that sees images, and no gradient a pooler behind hidden states that are learned: then DDP must search.
    own_weights = not hasattr(model, "peft_config") and count_parameters(model).adapter > 0
    is_partly_used = own_weights or recipe.task.teacher is not None
    options["ddp_find_unused_parameters"] = is_partly_used or base.config.get_text_config() is not base.config
    of_method = list(recipe.method.callbacks())
    every = [WholeCheckpoints(checkpoints, of_method, settings.checkpoint_every), *every, *of_method, *callbacks]
    every.append(LowerLossOfEqualScores(recipe.selected_by))
    trainer = kind.trainer(recipe, data, options, model=model, callbacks=every)
    trainer.remove_callback(PrinterCallback)  # which prints what is logged, on standard output
    return trainer, data


def _check_stored(recipe: Recipe, base: Any) -> None:
    """Raise a UserError where a model is stored quantised, and cannot be trained so by the recipe's methods."""
    if recipe.base.quantization is not None or not getattr(base, "is_quantized", False):
        return
    stored = f"'{recipe.model}' is stored quantised ({models.quantization_of(base.config)})"
    if not base.hf_quantizer.is_trainable:
        raise UserError(f"model: {stored}, in which Transformers trains nothing: name a copy that is not")
    trains_rounded = getattr(base.hf_quantizer, "is_qat_trainable", False) is True  # the weights themselves
    if not trains_rounded and (one := recipe.not_on_quantised) is not None:
        raise UserError(f"method: {one.name!r} is not allowed: {stored}: take an adapter of PEFT on a frozen base")


def _new_model(recipe: Recipe, base: Any, data: Data, checkpoints: Path) -> nn.Module:
    """The recipe's method on a pretrained model, with what it takes from training data before its first step."""
    start, wanted = None, recipe
    if wants_probe(recipe.method.options):
        start = start_for(recipe, base, data, checkpoints.parent, sample_of(recipe, data).loss)
        set_seed(recipe.seed)  # the same whether it was probed for or read
        wanted = start.resolved(recipe)
    if recipe.method.looks:
        if recipe.training.gradient_checkpointing:
            models.checkpoint_activations(base)
        with plain_method_errors():
            check_modules(base, recipe.method.options)
            looked = recipe.method.looked(models.on_device(base), sample_of(recipe, data), checkpoints)
            wanted = recipe.model_copy(update={"method": looked})
    model = models.make_model(wanted, base, kept=checkpoints)
    if start is not None:
        start.align(model)
    if recipe.method.start_from is not None:
        _go_on(recipe, model, data)
    return model


NO_OTHER_ADAPTER = ("calibrated", "eval_form", "modules_to_save")
"""Fields of a configuration that do not change what the weights of its adapter are."""


def _go_on(recipe: Recipe, model: Any, data: Data) -> None:
    """Give a new model the weights of the adapter that its method goes on from; a UserError where that is another."""
    path = files.expanded(recipe.method.start_from or "")
    run = load_run(path) if (path / publish.RECIPE).is_file() else None
    folder, own = path if run is None else path / publish.ADAPTER, model.peft_config["default"]
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UserError(f"method.from: {folder} holds no adapter: it has no {name}")
    models.check_floats(folder)
    with plainly(f"method.from: {folder} cannot be gone on from"):
        saved, names = PeftConfig.from_pretrained(str(folder)), added_fields(type(own))
        kept = [name for name in names if not name.startswith("init") and name not in NO_OTHER_ADAPTER]
        there, here = (
            {name: sorted(found) if isinstance(found := getattr(one, name, None), set) else found for name in kept}
            | {"method": one.peft_type.value}
            for one in (saved, own)
        )
        if run is not None:
            there |= {"model": run.recipe.model, "labels": run.labels}
            here |= {"model": recipe.model, "labels": data.labels}
        if found := differences(there, here):
            raise UserError(f"method.from: {folder} is another adapter; they differ in {', '.join(found)}")
        weights = load_peft_weights(str(folder), device="cpu")
        check_loaded(model, set_peft_model_state_dict(model, weights), folder)
        check_finite(weights.items(), f"method.from: {folder} cannot be gone on from")
    if data.scale is not None:  # its head gives numbers in their own units
        mean, deviation = data.scale
        kind_of(data.task).finish(model, replace(data, scale=(-mean / deviation, 1 / deviation)))


def own_share(data: Data, recipe: Recipe) -> list[dict[str, Tensor]]:
    """This process's calibration batches: the moments are summed over the processes, none of an example twice."""
    section, peers = recipe.calibration, state().num_processes
    count = min(section.examples, len(data.fixed("train")))
    size = max(1, min(section.batch_size, count // peers))  # a batch for each, where there are examples
    batches = data.calibration_batches(section.model_copy(update={"batch_size": size}))
    return own_part(batches) if count >= peers else batches


def sample_of(recipe: Recipe, data: Data) -> Sample:
    """The training data that a method may look at."""
    return Sample(
        batches=lambda share: data.training_batches(share, recipe.training.batch_size),
        loss=functools.partial(kind_of(data.task).loss, recipe),
        learning_rate=recipe.training.learning_rate,
        seed=recipe.seed,
        examples=len(data.fixed("train")),
        agree=lambda value: on_main(lambda: value),
        in_float16=recipe.training.precision == "fp16",
    )


# ---------------------------------------------------------------- a finished run, loaded again


def load_trainer(
    run: TrainedRun,
    recipe: Recipe | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    scored: Splits | None = None,
) -> tuple[Trainer, Data]:
    """A finished run's trained model and its data, to be scored; nothing is written."""
    with tempfile.TemporaryDirectory() as nowhere:  # Transformers wants a folder
        return make_trainer(recipe or run.recipe, Path(nowhere), callbacks, run.folder / publish.ADAPTER, scored)


def load_trained_model(run: TrainedRun, *, rounded: bool = False) -> tuple[nn.Module, Processor]:
    """The model of a finished run as its recipe keeps it, and its tokenizer or image processor. With `rounded`, for
    answers alone, the body's own weights are in the recipe's precision where they were trained, too."""
    base, processor = base_of(run, run.recipe)
    body = [parameter for name, parameter in base.named_parameters() if not is_head(base, name)]
    model = models.make_model(run.recipe, base, run.folder / publish.ADAPTER)
    if rounded:
        model.requires_grad_(False)
        models.keep_frozen_in(models.PRECISIONS[run.recipe.training.precision], body)
    return model, processor


def base_of(run: TrainedRun, recipe: Recipe) -> tuple[PreTrainedModel, Processor]:
    """The pretrained model of a finished run as this recipe keeps it, and the run's tokenizer or image processor."""
    processor = kind_of(run.task).processor(str(run.folder / publish.ADAPTER))
    return models.base_for(recipe, processor, run.labels), processor


# ---------------------------------------------------------------- scores


def score(recipe: Recipe, trainer: Trainer, data: Data, split: str, forms: Sequence[str]) -> Scores:
    """Metrics of each form on a split."""
    scores = {}
    for form in forms:
        with recipe.method.using(trainer.model, form):  # type: ignore[arg-type]
            scores[form] = kind_of(data.task).evaluate(trainer, data, split)
    return scores


SHOWN = 10
"""Wrong answers that a run keeps, the surest first."""


def _scored(
    recipe: Recipe, trainer: Trainer, data: Data, whole: WholeCheckpoints
) -> tuple[Result, dict[str, Any] | None]:
    """The result of a trained run: every form scored on the validation split and the test sets, and what it took; and
    its mistakes, see `_answers`."""
    kind, task, ended = kind_of(data.task), data.task, trainer.state
    epochs = epochs_from_log(ended.log_history, kind.facts.metric_names(task))
    best = next(entry for entry in epochs if entry["step"] == ended.best_global_step)
    names = dict.fromkeys(("validation", *recipe.test_sets))
    outputs: list[Any] = []  # of each form on each split
    metrics, forms, split = cast(Any, trainer.compute_metrics), recipe.method.forms, recipe.test_sets[0]

    def kept(found: Any) -> Any:
        outputs.append(found)
        return metrics(found)

    if options := kind.options(data, split):
        trainer.compute_metrics = kept
    scored = {name: score(recipe, trainer, data, name, forms) for name in names}
    place = list(names).index(split) * len(forms) + forms.index(recipe.method.deployed_form)
    by_class, wrong = _answers(data, split, options, outputs[place]) if options else ({}, None)
    result = build_result(
        recipe,
        model_commit=models.commit_of(trainer.model),  # type: ignore[arg-type]
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
        losses={str(entry["step"]): entry["loss"] for entry in ended.log_history if "loss" in entry},
        **by_class,
    )
    return result, wrong


def _answers(
    data: Data, split: str, options: Sequence[Sequence[str]], outputs: Any
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a run says of the answers to the examples of a split, by the outputs of its deployed form: `class_scores`,
    where all examples have the same options, and the mistakes of which it was surest; neither where one is no number.
    """
    kind = kind_of(data.task)
    scores = kind.by_option(outputs.predictions).astype("float64")
    if np.isnan(scores).any():
        return {}, None
    chosen = {"label": outputs.label_ids, "answer": scores.argmax(1)}
    named = {what: [some[int(one)] for some, one in zip(options, of, strict=True)] for what, of in chosen.items()}
    found = pd.DataFrame({**named, "probability": softmax(scores, axis=1).max(1)})
    wrong = found[found["label"] != found["answer"]]
    shown = wrong.nlargest(SHOWN, "probability")
    shown.insert(0, "example", [kind.example(data, split, place) for place in shown.index])
    is_fixed = all(set(some) == set(options[0]) for some in options)
    by_class = class_scores(named["label"], named["answer"], options[0]) if is_fixed else {}
    return by_class, {"split": split, "wrong": len(wrong), "examples": shown.to_dict("records")}


def _score_more(
    recipe: Recipe, folder: Path, result: Result, names: Sequence[str], bars: Sequence[TrainerCallback]
) -> Result:
    """Score a finished run on further test sets, and write them into its recipe and its result."""
    wanted = recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": tuple(names)})})
    trainer, data = make_trainer(wanted, folder / publish.CHECKPOINTS, bars, folder / publish.ADAPTER)
    kind, metric = kind_of(data.task), result["metric"]
    sets = metric.get("by_test_set") or dict.fromkeys(test_sets(result), metric["by_form"])
    for name in names:
        sets[name] = files.finite_or_none(score(wanted, trainer, data, name, recipe.method.forms))
        metric["examples"][name] = len(data.splits[name])
        for level, found in (("chance", kind.guessed), ("most_frequent", kind.most_frequent)):
            if level in metric:
                metric[level][name] = found(data, name)
    metric |= {"by_test_set": sets, "by_form": files.finite_or_none(mean_scores(sets))}
    result["recipe"]["task"]["test_sets"] = list(sets)
    on_main(lambda: files.write_text(folder / publish.RECIPE, dump(result["recipe"])))
    on_main(lambda: files.write_json(folder / publish.RESULT, result))
    return result


# ---------------------------------------------------------------- what is written


def _write(recipe: Recipe, folder: Path, model: Any, data: Data, result: Result, kept: InputStatistics | None) -> None:
    """The plain LoRA, the adapter and the result."""
    facts = card.Facts(recipe, data.task, result, models.padding_of(model.config), models.exact_modules(model.config))
    form, no_lora = recipe.method.deployed_form, None

    def save_lora(partial: Path) -> None:
        export_lora(model, partial, form, processor=data.processor, base_name=facts.base)  # type: ignore[arg-type]
        name_revision(partial, recipe)
        card.write_lora_card(partial, facts, form)

    def save(adapter: Path) -> None:
        recipe.method.save(model, adapter)
        if kept is not None:
            kept.save(adapter)
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
        if FORMS[form].mergeable:
            no_lora = publish.write_lora(folder, save_lora)
    publish.finish(folder, result, save)


def name_revision(adapter: Path, recipe: Recipe) -> None:
    """Name the revision of the base model, where a recipe has one, in an adapter's settings: for `AutoPeftModel`."""
    if (revision := recipe.base.revision) is not None:
        edit_config(adapter, lambda settings: settings.update(revision=revision))


# ---------------------------------------------------------------- small models that no package has


def pretrain(name: str, *, make_callbacks: MakeCallbacks = tuple) -> Path:
    """Train a model of `MODELS` that is pretrained here, or go on with it; one that is there is left as it is.

    Several processes may ask at once: one trains, the others wait.

    Args:
        name: of the model.
        make_callbacks: makes further Trainer callbacks, such as a progress bar.

    Returns:
        Its folder, which plain Transformers can load. It holds the recipe and the result of the training as well.

    Raises:
        UserError: there is no such model, or its data cannot be had.
    """
    made = MODELS.get(name)
    if not isinstance(made, PretrainedHere):
        here = [other.name for other in MODELS.values() if isinstance(other, PretrainedHere)]
        raise UserError(f"'{name}' is an {unknown('model to pretrain', here, name)}")
    if made.is_there:
        return made.folder
    work = made.folder.with_name(f"{made.folder.name}.work")
    files.check_writable(work)
    with files.held(work / ".pretrain.lock"):
        if not made.is_there:  # another process may have trained it while this one waited
            _make(made, work, make_callbacks)
    shutil.rmtree(work, ignore_errors=True)
    return made.folder


def ensure(names: Sequence[str], callbacks_for: Callable[[str], MakeCallbacks] = lambda name: tuple) -> None:
    """`pretrain` those of the models that are pretrained here and have not been yet."""
    for name in dict.fromkeys(names):
        if is_missing(name):
            pretrain(name, make_callbacks=callbacks_for(name))


def _make(made: PretrainedHere, work: Path, make_callbacks: MakeCallbacks) -> None:
    start, run = work / "start", work / "run"
    if not (start / "config.json").is_file():
        _write_start(made, start)
    values: dict[str, Any] = {"name": made.name, "model": str(start), "method": "full"}
    values |= {"task": dict(made.task), "training": dict(made.training)}
    train(validate(values, f"the pretraining of {made.name}"), run, make_callbacks=make_callbacks)
    model, processor = load_trained_model(load_run(run))
    body: Any = model.base_model  # without its head: the classes of Fashion-MNIST are nobody's start
    with files.new_folder(made.folder) as partial:
        body.save_pretrained(partial)
        processor.save_pretrained(str(partial))
        shutil.copy(run / publish.RECIPE, partial / f"pretraining-{publish.RECIPE}")
        shutil.copy(run / publish.RESULT, partial / models.RESULT_OF_PRETRAINING)


def _write_start(made: PretrainedHere, folder: Path) -> None:
    """The model with random weights, always the same ones, and its image processor."""
    with extra("vision"):
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    size = {"height": made.vit["image_size"], "width": made.vit["image_size"]}
    processor = ViTImageProcessor(size=size, image_mean=list(made.mean), image_std=list(made.std))
    with torch.random.fork_rng(devices=[]), files.new_folder(folder) as partial:
        torch.default_generator.manual_seed(0)
        ViTForImageClassification(ViTConfig(**made.vit)).save_pretrained(partial)
        processor.save_pretrained(partial)
