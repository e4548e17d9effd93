"""Learning a teacher's hidden states, to measure what share of full fine-tuning's effect a method can capture.

Accuracy saturates; this does not. On held-out texts, 0 is the base model and 1 the teacher; see `captured_metrics`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..deploy.inputs import IGNORED
from ..errors import UserError
from ..files import expanded
from .base_commit import commit_of, warn_of_another_commit
from .batches import in_batches
from .build import make_model
from .data import Data, Encoded, Example, Pad, without_targets
from .distributed import state
from .finished_run import TrainedRun, load_run
from .losses import per_item, squared_errors
from .models import load_base_model
from .recipe import Recipe
from .scoring_trainer import ScoringTrainer
from .storage import ADAPTER, adapter_digests


@dataclass(frozen=True)
class PadStates:
    """Collates examples with `labels`, the teacher's hidden states (tokens, channels), into labels (batch, longest,
    channels), and their `base_distance` into (batch,)."""

    pad: Pad

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = self.pad(list(map(without_targets, examples)))
        states = torch.cat([one["labels"] for one in examples])
        labels = states.new_full((*batch["input_ids"].shape, states.shape[-1]), IGNORED)
        labels[batch["attention_mask"].bool()] = states
        batch["labels"] = labels
        batch["base_distance"] = torch.tensor([one["base_distance"] for one in examples])
        return batch


Lessons = dict[str, list[tuple[Tensor, float]]]
"""What there is to learn of each split's texts: the teacher's hidden states (tokens, channels), and the base's squared
distance from them."""

_lessons: OrderedDict[str, Lessons] = OrderedDict()
"""The latest lessons of this process, `MOST_KEPT` bytes in all: the runs of a study learn the same ones again and
again."""
MOST_KEPT = 2**30


def taught(data: Data, recipe: Recipe) -> Data:
    """The data of a recipe that names a teacher, with what that one makes of them, in the form that it deploys.

    The record of the data has a digest of the teacher: scores of what two teachers taught are not compared.

    Raises:
        UserError: there is no such run, it is not finished, it is one of another model, or it has learned nothing.
    """
    assert recipe.task.teacher is not None
    try:
        run = load_run(expanded(recipe.task.teacher)).in_float32
    except UserError as error:
        raise UserError(f"task.teacher: {error}") from error
    if run.recipe.model != recipe.model:
        raise UserError(f"task.teacher: {run.folder} is a run of {run.recipe.model}, not of {recipe.model}")
    batch_size = recipe.training.eval_batch_size
    key = _key(run, recipe, data)
    if key not in _lessons:
        base = load_base_model(recipe.base, data.task, data.processor)
        warn_of_another_commit(run.folder, run.result, commit_of(base))
        with_head = load_base_model(recipe.base, run.task, data.processor, run.labels)
        _keep(key, lessons(data, base, make_model(run.recipe, with_head, run.folder / ADAPTER), batch_size))
    record = data.record or {}
    files = {**record.get("files", {}), str(run.folder / ADAPTER): _digest(run)}
    return replace(teach(data, _lessons[key]), record={**record, "files": files})


def lessons(data: Data, base: nn.Module, teacher: nn.Module, batch_size: int) -> Lessons:
    """What a teacher makes of the texts.

    Args:
        data: of a task of classification or regression.
        base: the pretrained body.
        teacher: a model on that body, with or without a head.
        batch_size: texts of one forward pass.

    Raises:
        UserError: the teacher's hidden states are those of the base model.
    """
    device = state().device
    base, teacher = base.to(device).eval(), teacher.to(device).eval()
    found: Lessons = {}
    for name, inputs in _inputs(data).items():
        found[name] = []
        for some in in_batches(inputs, batch_size):
            batch = {key: value.to(device) for key, value in data.collate(some).items()}
            own, wanted = _last_states(base, batch), _last_states(teacher, batch)
            for mask, before, after in zip(batch["attention_mask"].bool(), own, wanted, strict=True):
                found[name].append((after[mask].cpu(), (before[mask] - after[mask]).square().sum().item()))
    if not any(distance for split in found.values() for _, distance in split):
        raise UserError("task.teacher: its body is the base model's: there is no effect to learn")
    return found


def teach(data: Data, found: Lessons) -> Data:
    """Put the teacher's hidden states in place of the labels."""
    assert isinstance(data.collate, Pad)
    splits = {
        name: Encoded(
            [
                {**one, "labels": states, "base_distance": distance}
                for one, (states, distance) in zip(inputs, found[name], strict=True)
            ]
        )
        for name, inputs in _inputs(data).items()
    }
    return replace(data, splits=splits, collate=PadStates(data.collate))


def _inputs(data: Data) -> dict[str, list[Example]]:
    """The texts without their labels."""
    found = {}
    for name, split in data.splits.items():
        assert isinstance(split, Encoded)
        found[name] = list(map(without_targets, split.examples))
    return found


def _digest(teacher: TrainedRun) -> str:
    """A digest of the weights of a run."""
    weights = {name: of for name, of in adapter_digests(teacher.folder).items() if name.endswith(".safetensors")}
    return hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()


def _key(teacher: TrainedRun, recipe: Recipe, data: Data) -> str:
    """A digest of all that decides on the lessons."""
    digest = hashlib.sha256(str(teacher.folder.resolve()).encode())
    made_by = (adapter_digests(teacher.folder), recipe.base, recipe.training.eval_batch_size, state().device)
    digest.update(repr(made_by).encode())
    for name, inputs in _inputs(data).items():
        digest.update(name.encode())
        for one in inputs:
            digest.update(repr(sorted(one.items())).encode())
    return digest.hexdigest()


def _keep(key: str, found: Lessons) -> None:
    _lessons[key] = found

    def size(one: Lessons) -> int:
        return sum(states.nbytes for split in one.values() for states, _ in split)

    while len(_lessons) > 1 and sum(map(size, _lessons.values())) > MOST_KEPT:
        _lessons.popitem(last=False)


def _last_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        states: Tensor = model(**batch, output_hidden_states=True).hidden_states[-1]
    return states.float()


class DistillationTrainer(ScoringTrainer):
    """`RecipeTrainer` for hidden states: mean squared error over tokens and channels, scored by distances."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != "base_distance"}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def scored(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The squared distances of the model and of the base model to the teacher, (batch, 2), and the second alone."""
        labels, base_distance = batch.pop("labels"), batch.pop("base_distance")
        states = model(**batch)["last_hidden_state"].float()
        distance = squared_errors(states - labels, labels).sum(dim=(1, 2))
        return torch.stack((distance, base_distance), dim=-1), base_distance


def states_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean squared error of the last hidden states.

    Args:
        outputs: the model's, with last_hidden_state (batch, tokens, channels).
        labels: the teacher's, of the same shape; `IGNORED` for padding.
        num_items_in_batch: numbers compared in the whole step, over accumulated batches and all processes.
    """
    total = squared_errors(outputs["last_hidden_state"].float() - labels, labels).sum()
    return per_item(total, labels != IGNORED, num_items_in_batch)
