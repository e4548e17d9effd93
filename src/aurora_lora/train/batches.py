"""The examples of a step, divided among the processes that train: the step is the same, however many there are.

A recipe speaks of a step in one process: `gradient_accumulation_steps` forward passes of `batch_size` examples. On N
processes each takes an N-th of that, in fewer passes first, in smaller ones then. The last step of an epoch may have
fewer examples than there are places; the places left over are filled with examples whose loss is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..deploy.inputs import IGNORED
from ..errors import UserError

FILLS = "fills"

T = TypeVar("T")


def in_batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The rows, so many at a time; the last batch may have fewer."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


@dataclass(frozen=True)
class Share:
    """What one process does in a step.

    Args:
        batch_size: examples of a forward pass.
        accumulation: forward passes.
    """

    batch_size: int
    accumulation: int


class Step(Protocol):
    """The training section of a recipe of any kind."""

    @property
    def batch_size(self) -> int: ...

    @property
    def gradient_accumulation_steps(self) -> int: ...


def examples_of_a_step(training: Step) -> int:
    """Training examples of one step, however many processes share them."""
    return training.batch_size * training.gradient_accumulation_steps


def steps_of_an_epoch(training: Step, examples: int) -> int:
    """Steps over so many training examples; the last may have fewer than the others."""
    return math.ceil(examples / examples_of_a_step(training))


def divide(training: Step, processes: int) -> Share:
    """Each process's share of a step.

    Args:
        training: of the recipe.
        processes: how many train together.

    Raises:
        UserError: the examples cannot be divided evenly.
    """
    batch_size, accumulation = training.batch_size, training.gradient_accumulation_steps
    fewer = math.gcd(accumulation, processes)
    smaller = processes // fewer
    if batch_size % smaller:
        examples = batch_size * accumulation
        raise UserError(
            f"training.batch_size: the {examples} examples of a step (batch_size {batch_size} x "
            f"gradient_accumulation_steps {accumulation}) cannot be divided among {processes} processes (allowed: a "
            f"multiple of {processes} examples, or a number of processes that divides {examples})"
        )
    return Share(batch_size // smaller, accumulation // fewer)


class WholeSteps(Sampler[int]):
    """The order in which one process would take the examples, filled up to a multiple of what all take at a time.

    Args:
        dataset: what is trained on.
        seed: of the order.
        together: examples of a forward pass of all processes. `-1 - i` fills a place with example i.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, together: int) -> None:
        self.size: int = len(dataset)  # type: ignore[arg-type]
        self.order = SeedableRandomSampler(dataset, data_seed=seed)
        self.together = together

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from (-1 - number % self.size for number in range(len(self) - self.size))

    def __len__(self) -> int:
        return math.ceil(self.size / self.together) * self.together

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self.order.set_epoch(epoch)


class Filled(Dataset[dict[str, Any]]):
    """A data set that knows the numbers of `WholeSteps`: an example that fills a place says so under `FILLS`."""

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index] if index >= 0 else {**self.dataset[-1 - index], FILLS: True}


@dataclass(frozen=True)
class IgnoreFilling:
    """Collates as `collate` does; the labels of the examples that fill a place become `IGNORED`."""

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate([_silent(one) if FILLS in one else one for one in examples])
        for row, example in enumerate(examples):
            if FILLS in example and len(batch["labels"]) == len(examples):
                batch["labels"][row] = IGNORED
        return batch


def _silent(example: dict[str, Any]) -> dict[str, Any]:
    """An example that fills a place; labels of its tokens are none, also where several are collated into one row."""
    kept = {name: value for name, value in example.items() if name != FILLS}
    is_of_tokens = isinstance(kept.get("labels"), list) and "input_ids" in kept
    return {**kept, "labels": [IGNORED] * len(kept["labels"])} if is_of_tokens else kept
