"""Learning a teacher's hidden states, to measure what share of full fine-tuning's effect a method can capture.

Accuracy saturates; this does not. On held-out texts, 0 is the base model and 1 the teacher; see `captured_metrics`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer

from ...data.metrics import captured_metrics
from ...deploy.inputs import IGNORED
from ...errors import UserError
from ...files import expanded
from ..data import Collate, Data, Example, in_batches, without_targets
from ..finished_run import load_run
from ..kind_facts import DISTILLATION
from ..models import load_base_model, make_model, on_device
from ..publish import ADAPTER, adapter_digests
from ..recipe import Recipe
from ..trainer import Arguments, RecipeTrainer
from .text import Kind


@dataclass(frozen=True)
class PadStates:
    """Collates examples with `labels`, the teacher's hidden states (tokens, channels), into labels (batch, longest,
    channels), and their `base_distance` into (batch,)."""

    pad: Collate

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = dict(self.pad([without_targets(one) for one in examples]))
        states = torch.cat([one["labels"] for one in examples])
        labels = states.new_full((*batch["input_ids"].shape, states.shape[-1]), IGNORED)
        labels[batch["attention_mask"].bool()] = states
        return {**batch, "labels": labels, "base_distance": torch.tensor([one["base_distance"] for one in examples])}


class Distillation(Kind):
    """The model's body alone; squared error of its last hidden states."""

    facts = DISTILLATION

    def targets(self, data: Data, recipe: Recipe) -> Data:
        """The texts with a teacher's hidden states, in the form that it deploys, in place of the labels.

        The record of the data has a digest of the teacher: scores of what two teachers taught are not compared.

        Raises:
            UserError: there is no such run, it is not finished, it is one of another model, or it has learned nothing.
        """
        assert recipe.task.teacher is not None
        try:
            run = load_run(expanded(recipe.task.teacher)).in_precision("fp32")
        except UserError as error:
            raise UserError(f"task.teacher: {error}") from error
        if run.recipe.model != recipe.model:
            raise UserError(f"task.teacher: {run.folder} is a run of {run.recipe.model}, not of {recipe.model}")
        base = load_base_model(recipe.base, data.task, data.processor)
        with_head = load_base_model(recipe.base, run.task, data.processor, run.labels)
        teacher = make_model(run.recipe, with_head, run.folder / ADAPTER)
        splits = lessons(data, on_device(base), on_device(teacher), recipe.training.eval_batch_size)
        record = data.record or {}
        weights = {name: of for name, of in adapter_digests(run.folder).items() if name.endswith(".safetensors")}
        digest = hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()
        files = {**record.get("files", {}), str(run.folder / ADAPTER): digest}
        return replace(data, splits=splits, collate=PadStates(data.collate), record={**record, "files": files})

    def gap_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return without_targets(batch)

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return captured_metrics(predictions)

    def own_loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return states_loss(model, batch)

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        return DistillationTrainer(recipe, args=Arguments(**arguments), **self.of_data(data), **given)


def lessons(data: Data, base: nn.Module, teacher: nn.Module, batch_size: int) -> dict[str, list[Example]]:
    """The texts of each split with what there is to learn of them: under `labels` the teacher's last hidden states
    (tokens, channels), under `base_distance` the base's squared distance from them.

    Args:
        data: of a task of classification or regression.
        base: the pretrained body, in eval mode.
        teacher: a model on that body, with or without a head, in eval mode.
        batch_size: texts of one forward pass.

    Raises:
        UserError: the teacher's hidden states are those of the base model.
    """
    device, found = next(base.parameters()).device, {}
    for name, split in data.splits.items():
        found[name] = [without_targets(split[row]) for row in range(len(split))]
        for some in in_batches(found[name], batch_size):
            batch = {key: value.to(device) for key, value in data.collate(some).items()}
            with torch.no_grad():
                own, wanted = (
                    model(**batch, output_hidden_states=True).hidden_states[-1].float() for model in (base, teacher)
                )
            for one, mask, before, after in zip(some, batch["attention_mask"].bool(), own, wanted, strict=True):
                one["labels"] = after[mask].cpu()
                one["base_distance"] = (before[mask] - after[mask]).square().sum().item()
    if not any(one["base_distance"] for split in found.values() for one in split):
        raise UserError("task.teacher: its body is the base model's: there is no effect to learn")
    return found


def _errors(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The squared errors of the last hidden states of a body with the method applied; 0 at padding."""
    states = model(**without_targets(batch))["last_hidden_state"].float()
    return torch.where(batch["labels"] == IGNORED, 0.0, states - batch["labels"]).square()


def states_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of a body's last hidden states over the tokens and channels of a batch from `PadStates`."""
    return _errors(model, batch).sum() / (batch["labels"] != IGNORED).sum()


class DistillationTrainer(RecipeTrainer):
    """`RecipeTrainer` for hidden states: mean squared error over tokens and channels, scored by distances."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return states_loss(model, inputs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No loss; the squared distances of the model and of the base to the teacher, (batch, 2); the second alone."""
        with torch.no_grad(), self.accelerator.autocast():
            distance, base_distance = _errors(model, inputs).sum(dim=(1, 2)), inputs["base_distance"]
        return None, torch.stack((distance, base_distance), dim=-1), base_distance
