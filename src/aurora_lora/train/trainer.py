"""Transformers' Trainer with two learning rates, checkpoints whole or absent, and a clock that outlives a kill."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from .. import files, folders
from ..data.metrics import metric_named
from ..errors import DIVERGED, UserError
from ..finite import check_loss
from ..methods.parameters import WEIGHTS_FILE, is_head, load_trained, save_trained
from . import storage
from .base_commit import check_same_commit, commit_of
from .batches import Filled, IgnoreFilling, Share, WholeSteps, steps_of_an_epoch
from .distributed import check_as_many, check_precision, on_main
from .memory import frozen_dtype, peak_memory
from .recipe import Recipe
from .step_callbacks import Clock, EachEpoch, EarlyStop, ExtraCheckpoints, LogFirst, StopWhenAsked

TRAINER_STATE = "trainer_state.json"
"""The file in each checkpoint with Transformers' own state."""


def training_arguments(
    recipe: Recipe, share: Share, checkpoints: Path, examples: int, metric: str
) -> TrainingArguments:
    """The recipe in Transformers' words.

    Args:
        recipe: what to train.
        share: this process's, of each step.
        checkpoints: folder of the checkpoints.
        examples: in the training split.
        metric: that chooses the best epoch.

    Raises:
        UserError: a precision that this machine cannot compute in.
    """
    wanted = recipe.training
    has_accelerator = torch.accelerator.is_available()
    check_precision(wanted.precision)
    steps = steps_of_an_epoch(wanted, examples) * wanted.epochs
    every = wanted.eval_every if isinstance(wanted.eval_every, int) else None
    # `accelerate launch` gives every process the precision of its own configuration, which counts where this is fp32
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if wanted.precision == "fp32" else wanted.precision
    args = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=share.batch_size,
        per_device_eval_batch_size=wanted.eval_batch_size,
        gradient_accumulation_steps=share.accumulation,
        num_train_epochs=wanted.epochs,
        learning_rate=wanted.learning_rate,
        weight_decay=wanted.weight_decay,
        lr_scheduler_type=wanted.scheduler,
        warmup_steps=_warmup_of(wanted.warmup_ratio, steps) if wanted.warmup_steps is None else wanted.warmup_steps,
        max_grad_norm=wanted.max_grad_norm,
        bf16=wanted.precision == "bf16",
        fp16=wanted.precision == "fp16",
        eval_strategy="epoch" if every is None else "steps",
        eval_steps=every,
        # a checkpoint with each evaluation, so that the best one can be had back
        save_strategy="epoch" if every is None else "steps",
        save_steps=every or 500,
        metric_for_best_model=metric,
        greater_is_better=not metric_named(metric).lower_is_better,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=not has_accelerator,
        dataloader_pin_memory=has_accelerator,
        dataloader_num_workers=wanted.workers,
        remove_unused_columns=False,
        label_names=["labels"],
        log_level_replica="passive",
        report_to="none",  # see `loggers`
        run_name=recipe.name,
        project=os.environ.get("TRACKIO_PROJECT", "huggingface"),  # Transformers' default, which never looks for it
        disable_tqdm=True,
    )
    # On several GPUs without a launcher, Trainer would use DataParallel, with as many times the recipe's batch.
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def _warmup_of(ratio: float, steps: int) -> int:
    """Not all of the steps: the rate of the first one is 0, and a run of a single step would learn nothing."""
    return min(math.ceil(ratio * steps), steps - 1)


class RecipeTrainer(Trainer):
    """The trainer of `aurora train`.

    Args:
        recipe: what to train; the learning rates are taken from it.
        checkpoints: folder of the checkpoints. The last two are kept, and the best one as each of them knows it.
        kwargs: as for Transformers' Trainer.
    """

    def __init__(self, recipe: Recipe, checkpoints: Path, **kwargs: Any) -> None:
        self.recipe = recipe
        self.checkpoints = checkpoints
        self.clock = Clock()
        self.peak_mb = 0.0
        self._writing: Path | None = None
        # Before the others: the clock stops when a step ends, not after what follows it. Transformers' flow callback,
        # which decides what follows, always comes first.
        callbacks = [StopWhenAsked(), self.clock, LogFirst(), *kwargs.pop("callbacks", ())]
        if recipe.training.checkpoint_every is not None:
            callbacks.insert(0, ExtraCheckpoints(recipe.training.checkpoint_every))
        self.early_stop = None if recipe.training.patience is None else EarlyStop(recipe.training.patience)
        if self.early_stop is not None:
            callbacks.append(self.early_stop)
        if kwargs["args"].world_size > 1:
            kwargs["train_dataset"] = Filled(kwargs["train_dataset"])
            kwargs["data_collator"] = IgnoreFilling(kwargs["data_collator"])
        super().__init__(callbacks=callbacks, compute_loss_func=recipe.task.kind.loss(), **kwargs)
        self.remove_callback(PrinterCallback)
        self._order: WholeSteps | None = None
        self.add_callback(EachEpoch(self._set_order))
        # Several models accept `num_items_in_batch` without using it, which makes their loss N times too large under
        # gradient accumulation or on N processes. `mean_loss` divides by it instead.
        self.model_accepts_loss_kwargs = False

    def scoring(self, split: str) -> None:
        """Prepare to score a split."""

    @property
    def module(self) -> nn.Module:
        """The model, without the wrappers of distributed training."""
        assert self.model is not None
        return self.model

    @property
    def is_sharded(self) -> bool:
        """Whether processes share out the model: then all of them must run it equally often."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on up to four groups: adapter and head, each with and without weight decay (biases and norms)."""
        model = self.module if model is None else model
        if self.optimizer is None:
            wanted = self.recipe.training
            head_rate = wanted.head_learning_rate or wanted.learning_rate
            decaying = set(self.get_decay_parameter_names(model)) if wanted.weight_decay else set()
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = head_rate if is_head(self.module, name) else wanted.learning_rate
                    decay = wanted.weight_decay if name in decaying else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                **options,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """One process takes the order that Transformers and Accelerate make; several share out the same one."""
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset
        together = self.args.per_device_train_batch_size * self.args.world_size
        self._order = WholeSteps(dataset, self.recipe.seed, together)
        return self._order

    def _set_order(self, epoch: int) -> None:
        """Order the examples of an epoch: behind a loader that skips what came before a checkpoint, Accelerate does
        not."""
        if self._order is not None:
            self._order.set_epoch(epoch)

    def loss_of(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a model on a batch, outside the training loop."""
        inputs = self._prepare_inputs(dict(batch))
        with self.accelerator.autocast():
            loss = self.compute_loss(model, inputs)
        assert isinstance(loss, Tensor)
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss, the logits alone and the labels: encoder-decoder models and some of images give more."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, logits[0] if isinstance(logits, tuple) else logits, labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Transformers does; a loss that is no longer a number ends the run."""
        check_loss(logs.get("loss", 0.0), self.state.global_step)
        super().log(logs, start_time)

    # ---------------------------------------------------------------- checkpoints

    def resume(self) -> Path | None:
        """Read the run's own state from the last checkpoint that is whole, as is its best one; its path for `train`.

        Raises:
            UserError: the run was started with another number of processes, on another base model of the same name, or
                with its weights in another precision.
        """
        last = on_main(lambda: storage.last_intact(self.checkpoints, self._best_at))
        if last is None:
            return None
        saved = files.read_json(last / storage.RUN_STATE)
        folder = self.checkpoints.parent
        check_as_many(folder, saved["processes"], self.args.world_size)
        check_same_commit(folder, self.recipe.model, saved.get("model_commit"), commit_of(self.module))
        there, here = saved.get("frozen", str(torch.float32)), str(frozen_dtype(self.recipe))  # once it was always so
        if there != here:
            raise UserError(
                f"{folder} was started by a version that kept its frozen weights in {there}, this one "
                f"keeps them in {here}: finish it with that version, or choose another output folder"
            )
        for callback in self._stateful_callbacks():
            callback.load_state(last)
        self.clock.seconds = saved["train_s"]
        self.peak_mb = saved["peak_mb"]
        return last

    def has_ended(self, checkpoint: Path | None) -> bool:
        """Whether a checkpoint is one that the training stopped at early; its state is then this trainer's."""
        if checkpoint is None or self.early_stop is None:
            return False
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if not self.early_stop.is_over(self.args, state):
            return False
        self.state = state
        return True

    def _stateful_callbacks(self) -> list[Any]:
        """The callbacks of the method that keep a state in each checkpoint; see `Method.callbacks`."""
        return [callback for callback in self.callback_handler.callbacks if hasattr(callback, "save_state")]

    def _best_at(self, checkpoint: Path) -> list[Path]:
        """The best checkpoint when this one was written, if there was one yet."""
        step = files.read_json(checkpoint / TRAINER_STATE)["best_global_step"]
        return [] if step is None else [self.checkpoints / storage.checkpoint_name(step)]

    def best_checkpoint(self) -> Path:
        """The checkpoint with the best validation score.

        Raises:
            UserError: there was never a score to compare, or the checkpoint is damaged.
        """
        step = self.state.best_global_step
        if step is None:
            raise UserError(f"{DIVERGED}: the validation {self.args.metric_for_best_model} was never a number")
        best = self.checkpoints / storage.checkpoint_name(step)
        if not on_main(lambda: storage.is_intact(best)):
            raise UserError(f"{best} is damaged: the same command goes on from what is whole")
        return best

    def measure_memory(self) -> float:
        """The largest memory in use so far, in MiB, interruptions included."""
        self.peak_mb = max(self.peak_mb, peak_memory())
        return self.peak_mb

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self.checkpoints)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let Transformers write the checkpoint under another name; publish it; then delete the ones not needed."""
        name = storage.checkpoint_name(self.state.global_step)
        self._writing = self.checkpoints / f".writing{files.PARTIAL}"
        try:
            with files.plain_write_errors(self.checkpoints / name):
                on_main(self._make_room)
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process writes its own random state
                self.state.best_model_checkpoint = None  # it would name the folder being written; see best_checkpoint
                on_main(lambda: self._publish(name))
        except BaseException:  # as on a full disk, which what is half written would keep full
            if self.accelerator.is_main_process:
                with suppress(OSError):
                    folders.remove(self._writing)
            raise
        finally:
            self._writing = None

    def _make_room(self) -> None:
        assert self._writing is not None
        folders.remove(self._writing)
        self._writing.mkdir(parents=True)

    def _publish(self, name: str) -> None:
        assert self._writing is not None
        written = self._writing / name
        self.state.save_to_json(str(written / TRAINER_STATE))
        run_state = {
            "train_s": self.clock.seconds,
            "peak_mb": self.measure_memory(),
            "processes": self.args.world_size,
            "model_commit": commit_of(self.module),
            "frozen": str(frozen_dtype(self.recipe)),
        }
        (written / storage.RUN_STATE).write_text(json.dumps(run_state), encoding="utf-8")
        for callback in self._stateful_callbacks():
            callback.save_state(written)
        (written / "training_args.bin").unlink(missing_ok=True)  # a pickle, never read back: the recipe says it all
        storage.write_manifest(written)
        folders.publish(written, self.checkpoints / name)
        self._writing.rmdir()
        last_two = list(storage.checkpoints(self.checkpoints).values())[-2:]
        storage.keep_only(self.checkpoints, {*last_two, *(best for path in last_two for best in self._best_at(path))})

    # ---------------------------------------------------------------- methods without a PEFT adapter

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if hasattr(self.model, "peft_config") or self.is_sharded:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.checkpoints)
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(self.module, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if (Path(resume_from_checkpoint) / WEIGHTS_FILE).exists():
            load_trained(self.module if model is None else model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def load_best(self) -> None:
        """Put the weights of the best checkpoint into the model, as they are deployed; raises as `best_checkpoint`."""
        self.load_weights(self.best_checkpoint())

    def load_weights(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model."""
        self._load_from_checkpoint(str(checkpoint))
