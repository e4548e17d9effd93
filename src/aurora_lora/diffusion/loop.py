"""The training loop and its loss (Ho et al. 2020): whole checkpoints, the same weights after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_scheduler

from .. import files, termination
from ..data.dreambooth import images_digest
from ..errors import UserError
from ..methods.parameters import load_trained, save_trained
from ..temporary_attributes import kept
from ..train import publish
from ..train.models import PRECISIONS
from ..train.trainer import peak_memory
from ..values import check_loss
from .pipeline import seed_of
from .recipe import SubjectRecipe
from .subject import Noised, Subject

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


def squared_errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each sample, (batch,), in float32."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(1)


@dataclass
class Progress:
    """How far a run is: what a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    train_s: float = 0.0
    peak_mb: float = 0.0
    losses: list[float] = field(default_factory=list)
    """The mean loss of each step."""
    validations: list[dict[str, Any]] = field(default_factory=list)
    model_commit: str | None = None
    """The commit of the pipeline, see `cached_commit`."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The loss scale of fp16."""
    images: str | None = None
    """The digest of the folder with the images of the subject."""


class Loop:
    """Trains a U-Net.

    Args:
        recipe: how.
        model: the U-Net with the recipe's method applied to it.
        subject: the data.
        checkpoints: folder of the checkpoints; the last two are kept.
    """

    def __init__(self, recipe: SubjectRecipe, model: nn.Module, subject: Subject, checkpoints: Path) -> None:
        self.recipe, self.model, self.subject, self.checkpoints = recipe, model, subject, checkpoints
        wanted = recipe.training
        self.progress = Progress(model_commit=subject.diffusion.commit, images=images_digest(recipe.task.images))
        if wanted.gradient_checkpointing:
            subject.diffusion.pipe.unet.enable_gradient_checkpointing()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=wanted.learning_rate, weight_decay=wanted.weight_decay)
        self.schedule = get_scheduler(
            wanted.scheduler, self.optimizer, num_warmup_steps=wanted.warmup_steps, num_training_steps=wanted.steps
        )
        self.scaler = torch.amp.GradScaler(subject.diffusion.device.type, enabled=wanted.precision == "fp16")

    # ---------------------------------------------------------------- training

    def run(self, validate: Callable[[], dict[str, Any]], each: Callable[[str], None]) -> None:
        """Train to the last step, from the first or from where `resume` led.

        Args:
            validate: called after every so many steps; gives what is recorded.
            each: called after each step, with the loss in words.

        Raises:
            UserError: the loss is no number any more.
            TerminatedError: SIGTERM has come; the step that it came in is in a checkpoint.
        """
        wanted, progress = self.recipe.training, self.progress
        every = self.recipe.validation.every
        if progress.step == 0 and not progress.validations:
            self._validate(validate)
        while progress.step < wanted.steps:
            since = time.perf_counter()
            loss = self._step(progress.step)
            progress.train_s += time.perf_counter() - since
            progress.step += 1
            check_loss(loss, progress.step)
            progress.losses.append(loss)
            each(f"loss {loss:.3f}")
            validates = progress.step % every == 0 or progress.step == wanted.steps
            if validates:
                self._validate(validate)
            stops = termination.asked()
            if validates or stops or progress.step % wanted.checkpoint_every == 0:
                self._save()
            if stops:
                termination.stop()

    def _validate(self, validate: Callable[[], dict[str, Any]]) -> None:
        seen = self.progress.validations[-1]["step"] if self.progress.validations else 0
        losses = self.progress.losses[seen:]
        samples = self.progress.step * self.samples_per_step
        self.progress.validations.append(
            {
                "epoch": round(samples / len(self.subject.images), 4),
                "step": self.progress.step,
                "train_loss": sum(losses) / len(losses) if losses else None,
                "validation": validate(),
            }
        )

    @property
    def samples_per_step(self) -> int:
        """Images of the subject in one step."""
        return self.recipe.training.batch_size * self.recipe.training.gradient_accumulation_steps

    def _step(self, step: int) -> float:
        """One step of the optimizer; the mean loss of its samples."""
        wanted, total = self.recipe.training, 0.0
        passes, size = wanted.gradient_accumulation_steps, wanted.batch_size
        self.model.train()
        for number in range(step * passes, (step + 1) * passes):
            torch.manual_seed(seed_of("dropout", self.recipe.seed, number, 0))
            loss = self.loss(self.subject.batch(range(number * size, (number + 1) * size)))
            self.scaler.scale(loss / passes).backward()
            total += float(loss)
        if wanted.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, wanted.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.schedule.step()
        return total / passes

    def loss(self, batch: Noised) -> Tensor:
        """The mean squared error of the prediction, which is made in the recipe's precision."""
        precision = self.recipe.training.precision
        with torch.autocast(self.subject.diffusion.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            predicted: Tensor = self.model(**batch.inputs, return_dict=False)[0]
        return squared_errors(predicted, batch.wanted).mean()

    # ---------------------------------------------------------------- checkpoints

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: the run was started with other images.
        """
        here, there = self.progress, Progress(**files.read_json(checkpoint / STATE))
        if there.images != here.images:
            raise UserError(
                f"the images in {self.recipe.task.images} have changed since the run in "
                f"{self.checkpoints.parent} began: put them back, or choose another output folder"
            )
        self.progress = replace(there, model_commit=here.model_commit, images=here.images)
        load_trained(self.model, checkpoint)
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(checkpoint / OPTIMIZER).items():
            index, name = key.split(".", 1)
            kept.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})
        for _ in range(self.progress.step):
            self.schedule.step()
        self.scaler.load_state_dict(self.progress.scaler)

    def _save(self) -> None:
        self.progress.peak_mb = max(self.progress.peak_mb, peak_memory())
        self.progress.scaler = self.scaler.state_dict()
        path = self.checkpoints / publish.checkpoint_name(self.progress.step)
        with files.new_folder(path) as partial:
            save_trained(self.model, partial)
            optimizer = self.optimizer.state_dict()["state"]
            tensors = {
                f"{i}.{name}": torch.as_tensor(v) for i, values in optimizer.items() for name, v in values.items()
            }
            save_file(tensors, partial / OPTIMIZER)
            files.write_json(partial / STATE, asdict(self.progress))
            publish.write_manifest(partial)
        publish.keep_only(self.checkpoints, list(publish.checkpoints(self.checkpoints).values())[-2:])


def prediction_scores(model: nn.Module, batches: list[Noised]) -> dict[str, float]:
    """How well a model predicts what it is to predict, over fixed samples, in evaluation mode.

    Returns:
        `noise_error`, E|p - t|^2 for the prediction p and its target t, a mean over numbers; and `explained`, the share
        1 - E|p - t|^2 / E|t|^2.
    """
    with kept(model.modules(), "training"), torch.no_grad():
        model.eval()
        errors = [squared_errors(model(**b.inputs, return_dict=False)[0], b.wanted) for b in batches]
    whole = torch.cat([batch.wanted.float().square().flatten(1).mean(1) for batch in batches]).double().mean()
    error = torch.cat(errors).double().mean()
    return {"explained": float(1 - error / whole), "noise_error": float(error)}
