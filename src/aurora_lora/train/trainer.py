"""What the trainers of all kinds share: processes, the recipe in Transformers' words, two learning rates, callbacks."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import huggingface_hub
import psutil
import torch
import transformers
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list, reduce  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .. import files, termination
from ..data.metrics import metric_named
from ..deploy import calibrate
from ..deploy.calibrate import MAX_MEMORY, check_ridge, several_processes
from ..deploy.inputs import Batch, as_batches, no_batches
from ..errors import FormError, UserError, one_line
from ..extras import extra
from ..forms import CALIBRATED, DYNAMIC, MERGED, STATIC
from ..methods.parameters import is_head, save_trained
from ..methods.updates import low_rank_updates
from ..tuner import AuroraLayer, active_layers
from ..values import check_loss
from .publish import LEFT, RIGHT, checkpoint_name, manifest_of, write_manifest
from .recipe import Logger, Recipe, TrainingSection, divide, epochs_of, steps_of

TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
"""Where Transformers' callback looks for the folder of TensorBoard's files."""
T = TypeVar("T")
WAIT = timedelta(seconds=1800)
"""How long processes wait for each other: Transformers' `ddp_timeout`, which counts where its Trainer joins them."""


def state() -> PartialState:
    """This process among its peers; joins them (gloo where there is no accelerator) on the first call."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def is_main() -> bool:
    """Whether this process prints and writes."""
    return bool(state().is_main_process)


def own_part(work: list[T]) -> list[T]:
    """What this process does of some work: process i of n does i, i + n, i + 2 n, ...."""
    peers = state()
    return work[peers.process_index :: peers.num_processes]


def on_main(work: Callable[[], T]) -> T:
    """Do the work in the main process and give its result, or its error, to all."""
    if state().num_processes == 1:
        return work()
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome, from_process=0)
    if outcome[1] is not None:
        raise cast(Exception, outcome[1])
    return cast(T, outcome[0])


def asked_to_stop() -> bool:
    """Whether SIGTERM has come to any of the processes, which all ask at the same step."""
    here = termination.asked()
    if not termination.is_watched() or state().num_processes == 1:
        return here
    return bool(reduce(torch.tensor(float(here), device=state().device), "sum") > 0)


def check_precision(precision: str) -> None:
    """Raise a UserError if this machine cannot train in a precision of a recipe."""
    if precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("training.precision: 'fp16' needs a GPU (allowed here: 'fp32', 'bf16')")


def reset_peak_memory() -> None:
    """Measure `peak_memory` from here on; on a CPU where the system can (Linux), else it is that of the process."""
    gc.collect()  # a model that was trained before: Accelerate binds its `forward` to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The largest memory in use since `reset_peak_memory`, in MiB: of the GPU, or of this process without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_peak_memory()


def process_peak_memory() -> float:
    """The largest memory of this process in use, in MiB, whether there is a GPU or not; see `peak_memory`. Where the
    system does not say (macOS), that in use now."""
    with contextlib.suppress(OSError, StopIteration):  # Linux
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 2**10
    now = psutil.Process().memory_info()
    return float(getattr(now, "peak_wset", now.rss)) / 2**20


# ---------------------------------------------------------------- the recipe in Transformers' words


class OneDevice:
    """Makes `TrainingArguments` compute on one GPU: on several, without a launcher, Trainer would use DataParallel,
    with as many times the recipe's batch."""

    @property
    def n_gpu(self) -> int:
        """GPUs of this process."""
        return min(1, int(super().n_gpu))  # type: ignore[misc]


class Arguments(OneDevice, TrainingArguments):
    """`TrainingArguments` of one device."""


def arguments(recipe: Recipe, checkpoints: Path, examples: int) -> dict[str, Any]:
    """The recipe in Transformers' words: the fields of `TrainingArguments`, which TRL's configurations have as well;
    `examples` are those of the training split, 0 where nothing is trained.

    Raises:
        UserError: a precision that this machine cannot compute in, or a step that cannot be divided among processes.
    """
    wanted = recipe.training
    has_accelerator = torch.accelerator.is_available()
    check_precision(wanted.precision)
    share = divide(wanted, state().num_processes if examples else 1)
    steps = steps_of(wanted, examples)
    every = None if wanted.eval_every == "epoch" else wanted.eval_every
    # `accelerate launch` gives every process the precision of its own configuration, which counts where this is fp32
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if wanted.precision == "fp32" else wanted.precision
    # not all of the steps: the rate of the first one is 0, and a run of a single step would learn nothing
    warmup = max(0, min(math.ceil(wanted.warmup_ratio * steps), steps - 1))
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": share.batch_size,
        "per_device_eval_batch_size": wanted.eval_batch_size,
        "gradient_accumulation_steps": share.accumulation,
        "num_train_epochs": epochs_of(wanted, examples),
        "max_steps": wanted.max_steps or -1,
        "learning_rate": wanted.learning_rate,
        "weight_decay": wanted.weight_decay,
        "lr_scheduler_type": wanted.scheduler,
        "warmup_steps": warmup if wanted.warmup_steps is None else wanted.warmup_steps,
        "max_grad_norm": wanted.max_grad_norm,
        "bf16": wanted.precision == "bf16",
        "fp16": wanted.precision == "fp16",
        "eval_strategy": "epoch" if every is None else "steps",
        "eval_steps": every,
        # a checkpoint with each evaluation, so that the best one can be had back
        "save_strategy": "epoch" if every is None else "steps",
        "save_steps": every or 500,
        "save_total_limit": 3,  # the best, the last and the one before, which counts if the last is half written
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,
        "metric_for_best_model": recipe.selected_by,
        "greater_is_better": not metric_named(recipe.selected_by).lower_is_better,
        "logging_steps": max(1, steps // 200),
        "logging_nan_inf_filter": False,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": not has_accelerator,
        "dataloader_pin_memory": has_accelerator,
        "dataloader_num_workers": wanted.workers,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "log_level_replica": "passive",
        "report_to": list(wanted.report_to) if examples else "none",
        "run_name": recipe.name,
        "project": os.environ.get("TRACKIO_PROJECT", "huggingface"),  # Transformers never looks for it
        "disable_tqdm": True,
    }


class RecipeTrainer(Trainer):
    """Transformers' Trainer with a learning rate of its own for the head."""

    def __init__(self, recipe: Recipe, **kwargs: Any) -> None:
        self.recipe = recipe
        super().__init__(preprocess_logits_for_metrics=_logits_alone, **kwargs)
        # Several models accept `num_items_in_batch` without using it, which makes their loss N times too large under
        # gradient accumulation: the mean of a forward pass is divided by their number instead.
        self.model_accepts_loss_kwargs = False

    @property
    def is_sharded(self) -> bool:
        """Whether processes share out the model: then all of them must run it equally often."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on up to four groups: adapter and head, each with and without weight decay (biases and norms)."""
        model = model or self.model
        assert model is not None
        if self.optimizer is None:
            wanted = self.recipe.training
            head_rate = wanted.head_learning_rate or wanted.learning_rate
            decaying = set(self.get_decay_parameter_names(model)) if wanted.weight_decay else set()
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = head_rate if is_head(self.model, name) else wanted.learning_rate  # type: ignore[arg-type]
                    decay = wanted.weight_decay if name in decaying else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                **options,
            )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save as Transformers does; of a model without PEFT's adapter only what is trained."""
        if hasattr(self.model, "peft_config") or self.is_sharded:
            super().save_model(output_dir, *args, **kwargs)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)  # type: ignore[arg-type]
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(self.model, folder)  # type: ignore[arg-type]


def _logits_alone(logits: Any, labels: Any) -> Tensor:
    found: Tensor = logits[0] if isinstance(logits, tuple) else logits  # some models give more
    return found


# ---------------------------------------------------------------- callbacks


class WholeCheckpoints(TrainerCallback):
    """Makes each checkpoint whole, with what a run that goes on needs to know: how long it has trained, and on what.

    Asks for checkpoints beside those at the evaluations: each `every` steps, and at the step in which SIGTERM comes,
    where the process ends then. Counts the seconds of training steps; evaluations, calibrations and checkpoints are
    left out. Ends a run whose loss is no number any more, by a UserError.
    """

    def __init__(self, folder: Path, others: Sequence[TrainerCallback] = (), every: int | None = None) -> None:
        self.folder, self.every = folder, every
        self.stateful: list[Any] = [one for one in others if hasattr(one, "save_state")]
        self.seconds, self.peak_mb = 0.0, 0.0
        self._since: float | None = None

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: the run was started with another number of processes.
        """
        manifest = manifest_of(checkpoint)
        assert manifest is not None
        if (before := manifest.get("processes")) != (now := state().num_processes):
            raise UserError(
                f"{self.folder.parent} was started with {before} process(es), this is {now}: go on with as many, or "
                "choose another output folder"
            )
        self.seconds, self.peak_mb = manifest.get("train_s", 0.0), manifest.get("peak_mb", 0.0)
        for callback in self.stateful:
            callback.load_state(checkpoint)

    def measure_memory(self) -> float:
        """The largest memory in use so far, in MiB, interruptions included."""
        self.peak_mb = max(self.peak_mb, peak_memory())
        return self.peak_mb

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:  # the folder may have moved
            state.best_model_checkpoint = str(self.folder / checkpoint_name(state.best_global_step))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = self._since or time.perf_counter()

    on_epoch_begin = on_step_begin

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_epoch_end = float(state.epoch or 0.5).is_integer()
        # at an epoch's last step, and the last of all, an evaluation and its checkpoint follow: one before these would
        # let a resumed run miss them
        is_last = state.global_step >= state.max_steps or (is_epoch_end and args.eval_strategy == "epoch")
        is_due = self.every is not None and state.global_step % self.every == 0
        if (asked_to_stop() or is_due) and not is_last:
            control.should_save = True
        # at an epoch's last step, too: what others do there before the epoch ends is no training
        if control.should_evaluate or control.should_save or is_epoch_end:
            self.on_epoch_end(args, state, control)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        check_loss((logs or {}).get("loss", 0.0), state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the last step is still under way
            self.seconds += time.perf_counter() - self._since
        self._since = None
        # a run that goes on from here could not tell the loss since the last line of the log
        control.should_log = control.should_log or control.should_evaluate or control.should_save

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes its own random state
        if is_main():
            checkpoint = self.folder / checkpoint_name(state.global_step)
            for callback in self.stateful:
                callback.save_state(checkpoint)
            write_manifest(
                checkpoint,
                best=state.best_global_step,
                train_s=self.seconds,
                peak_mb=self.measure_memory(),
                processes=args.world_size,
            )
        PartialState().wait_for_everyone()
        if asked_to_stop():  # not by `should_training_stop`: Trainer would evaluate as at the end of an epoch
            termination.stop()


class LowerLossOfEqualScores(TrainerCallback):
    """Makes an evaluation the best one so far where its score is the best one's, and its loss is less.

    Trainer takes the first of equal scores. It compares after its callbacks; to the patience of one before this, an
    equal score is still none that is better."""

    def __init__(self, metric: str) -> None:
        self.metric = f"eval_{metric}"

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        loss = next((name for name in ("eval_nll", "eval_mse", "eval_loss") if name in (metrics or {})), "")
        of_best = [one for one in state.log_history if loss in one and one["step"] == state.best_global_step]
        if of_best and metrics.get(self.metric) == state.best_metric and metrics[loss] < of_best[-1][loss]:
            state.best_metric = None  # whatever comes now is better


def has_stopped(state: TrainerState, training: TrainingSection) -> bool:
    """Whether a training ended at this state, of a checkpoint: for want of better scores, or by `max_steps`."""
    callbacks: Any = state.stateful_callbacks or {}
    kept = callbacks.get(EarlyStoppingCallback.__name__, {})
    in_vain = kept.get("attributes", {}).get("early_stopping_patience_counter", 0)
    is_in_vain = training.patience is not None and in_vain >= training.patience
    return is_in_vain or (training.max_steps is not None and state.global_step >= training.max_steps)


class UpdateRecorder(TrainerCallback):
    """`training.save_updates`: writes `epoch-000.safetensors` before the first step, and one file after each epoch.

    A file holds `FORM/LAYER/left` (d_out, r) and `FORM/LAYER/right` (r, d_in), with `dW = left @ right`. Of AuroRA the
    forms are the static one and the one that is deployed, calibrated for it where need be. A file is whole or absent,
    and comes before the checkpoint of its epoch: a run that goes on has all the earlier ones.
    """

    def __init__(self, recipe: Recipe, folder: Path, batches: Sequence[Batch]) -> None:
        method = recipe.method
        kept = {STATIC, MERGED, method.deployed_form} - {DYNAMIC}
        self.forms = [form for form in method.forms if form in kept]
        self.name, self.ridge = method.name, recipe.calibration.ridge
        self.folder, self.batches = folder, batches

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._write(kwargs["model"], 0, state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        epoch = float(state.epoch or 0)
        if epoch.is_integer():  # an epoch's last step; training may stop at another
            self._write(kwargs["model"], int(epoch), state)

    def _write(self, model: nn.Module, epoch: int, state: TrainerState) -> None:
        tensors: dict[str, Tensor] = {}
        for form in self.forms:
            try:
                if form == CALIBRATED and not is_calibrated(model):
                    calibrate(model, self.batches, ridge=self.ridge)
                updates = low_rank_updates(model, form)
            except FormError as error:
                raise UserError(f"training.save_updates: not with {self.name}: {error}") from error
            for layer, (left, right) in updates.items():
                tensors[f"{form}/{layer}/{LEFT}"] = left.cpu().contiguous()
                tensors[f"{form}/{layer}/{RIGHT}"] = right.cpu().contiguous()
        if state.is_world_process_zero:
            with files.new_file(self.folder / f"epoch-{epoch:03d}.safetensors") as partial:
                save_file(tensors, partial, metadata={"step": str(state.global_step)})


@contextmanager
def own_runs(names: Sequence[Logger], logs: Path) -> Iterator[None]:
    """Within the block a training reports to these loggers: TensorBoard's files go to `logs`, and a run of Weights &
    Biases ends with it, as Transformers' callback goes on with one that is open."""
    for name in names:
        with extra(name):
            importlib.import_module(name)
    os.environ[TENSORBOARD] = str(logs)
    try:
        yield
    except Exception as error:  # as where nobody has logged in
        if type(error).__module__.startswith("wandb"):
            raise UserError(f"training.report_to: wandb: {one_line(error)}") from error
        raise
    finally:
        del os.environ[TENSORBOARD]
        if "wandb" in names:
            sys.modules["wandb"].finish()


# ---------------------------------------------------------------- calibration


class CalibrationCallback(TrainerCallback):
    """Calibrates just before each evaluation in training, where `eval()` computes the calibrated form, and at the end.

        Trainer(model=model, ..., callbacks=[CalibrationCallback(batches)])

    Without it, an evaluation in the middle of training scores the dynamic form: the calibrated matrix is missing or
    stale. At the end an adapter that is calibrated stays as it is, that of a best checkpoint say. Does nothing where no
    active adapter deploys the calibrated form; otherwise calibrates all active ones. `eval_on_start` comes too early
    for it, and so does an evaluation that a callback behind it asks for: it warns that these score the dynamic form.

    Args:
        batches: training inputs as `aurora_lora.calibrate` takes them, a few hundred: they are kept in memory, and gone
            through at each evaluation. On several processes, each may hold its own share.
        ridge: as of `calibrate`.
        max_memory: as of `calibrate`.
        progress: as of `calibrate`.
        at_end: whether to calibrate at the end of training, too.
        reading: `tokenizer`, `text_columns`, `batch_size`, `examples` (a part of a dataset, or of a loader of the whole
            training set) and `max_length`, as of `calibrate`.

    Raises:
        CalibrationError: no batches.
        TypeError, ValueError: as `calibrate`.
    """

    def __init__(
        self,
        batches: Any,
        *,
        ridge: float = 1e-4,
        max_memory: float = MAX_MEMORY,
        progress: bool = False,
        at_end: bool = True,
        **reading: Any,
    ) -> None:
        check_ridge(ridge)
        self.batches = list(as_batches(batches, **reading))
        if not self.batches and not several_processes():
            raise no_batches("CalibrationCallback")
        self.at_end = at_end
        self._options: dict[str, Any] = {"ridge": ridge, "max_memory": max_memory, "progress": progress}
        self._checked = False

    # Transformers' own flow callback comes first in both events and decides whether to evaluate.

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate and _calibrated(kwargs["model"]):
            calibrate(kwargs["model"], self.batches, **self._options)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.at_end and _awaits_calibration(kwargs["model"]):
            calibrate(kwargs["model"], self.batches, **self._options)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._checked and _awaits_calibration(kwargs["model"]):
            warnings.warn(
                "This evaluation scores the dynamic form: the adapter is not calibrated yet (CalibrationCallback comes "
                "before the evaluations of training that are asked for before it, and calibrates at the end).",
                stacklevel=2,
            )
        self._checked = True

    def on_evaluate(self, args: Any, state: Any, control: Any, *others: Any, **kwargs: Any) -> None:
        self._checked = False

    on_train_begin = on_predict = on_evaluate


def _calibrated(model: nn.Module) -> list[tuple[AuroraLayer, str]]:
    """The layers with their active adapters whose calibrated form `eval()` computes, where that is one of its own."""
    return [
        (layer, name)
        for _, layer, name in active_layers(model)
        if layer.aurora_config[name].resolved_eval_form == CALIBRATED and not layer.forms_coincide(name)
    ]


def _awaits_calibration(model: nn.Module) -> bool:
    """Whether an adapter that is to compute the calibrated form, and is not switched off, has no fresh matrix."""
    return any(not layer.disable_adapters and not layer.calibration[name].check() for layer, name in _calibrated(model))


def is_calibrated(model: nn.Module) -> bool:
    """Whether every active adapter has calibrated matrices that belong to its present weights, where it needs them."""
    return all(layer.forms_coincide(name) or layer.calibration[name].check() for _, layer, name in active_layers(model))


# ---------------------------------------------------------------- what a person sees


class ProgressBar(TrainerCallback):
    """Shows training and evaluations, where there is no terminal as a line every `EVERY` seconds or a step if longer.

    Other processes than the main one show nothing.
    """

    EVERY = 9.0

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.progress = bar(console)
        self.training: TaskID | None = None
        self.scoring: TaskID | None = None
        self.loss = ""
        self.said = time.monotonic()
        self.before: Callable[[], None] = lambda: None
        """Called before anything is shown."""

    def say(self, lines: Iterable[str]) -> None:
        """Print lines about what is trained."""
        self.before()
        for line in lines:
            self.console.print(f"{self.title}: {line}", highlight=False, soft_wrap=True)
            self.said = time.monotonic()

    def say_where(self, task: TaskID, what: str) -> None:
        """Print how far a task is, where no bar shows it and the last line is old."""
        if self.console.is_terminal or time.monotonic() - self.said < self.EVERY:
            return
        at = next(each for each in self.progress.tasks if each.id == task)
        self.say([f"{what} {at.completed:.0f} of {at.total:.0f}, {TimeRemainingColumn().render(at)} left"])

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.before()
        if state.is_world_process_zero:
            if 0 < state.global_step < state.max_steps:
                self.console.print(f"{self.title}: going on from epoch {state.epoch:.4g} of {args.num_train_epochs:g}")
            self.progress.start()
            total, done = state.max_steps, state.global_step
            self.training = self.progress.add_task(self.title, total=total, completed=done, note="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            epoch = min(int(state.epoch or 0) + 1, int(args.num_train_epochs))
            note = f"epoch {epoch}/{args.num_train_epochs:g} {self.loss}"
            self.progress.update(self.training, completed=state.global_step, note=note)
            self.say_where(self.training, f"{note.strip()}, step")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            if self.scoring is None:
                self.progress.start()
                self.scoring = self.progress.add_task("scoring", total=len(kwargs["eval_dataloader"]), note="")
            self.progress.advance(self.scoring)
            self.say_where(self.scoring, "scoring, batch")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.scoring is not None:
            self.progress.remove_task(self.scoring)
            self.scoring = None
        if self.training is None:
            self.progress.stop()
        name = f"eval_{args.metric_for_best_model}"
        if self.training is not None and metrics and name in metrics:
            where = f"epoch {state.epoch:.4g} of {args.num_train_epochs:g}"
            self.say([f"{where}, validation {args.metric_for_best_model} {metrics[name]:.4f}, {self.loss}"])

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self.training is not None:
            self.progress.remove_task(self.training)
            self.training = None
        self.progress.stop()


def bar(console: Console) -> Progress:
    """A progress bar with a field `note`; nothing is drawn where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=600,  # evaluations between the steps are part of the time that is left
    )


def quiet_libraries() -> None:
    """Switch off the progress bars, load reports and warnings of the libraries underneath; ours are still shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    if sys.stderr.isatty():
        bars: Any = huggingface_hub.utils
        bars.enable_progress_bars()  # of downloads
    for name in ("accelerate", "bitsandbytes", "datasets", "torch.distributed", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
