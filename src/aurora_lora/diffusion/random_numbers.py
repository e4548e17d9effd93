"""Random numbers that are decided by what they are for: not by the number of processes, nor by where a run went on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

from ..train.distributed import own_part

T = TypeVar("T")


def seed_of(*what: object) -> int:
    """A seed made of `what`."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest()) >> 1


def generator(*what: object) -> torch.Generator:
    """A generator on the CPU, so that the numbers are the same on every device."""
    return torch.Generator().manual_seed(seed_of(*what))


def row_of(sample: int, rows: int, *what: object) -> int:
    """Which of so many rows is the `sample`-th of a run: each epoch takes all of them once, in an order of its own."""
    epoch, place = divmod(sample, rows)
    return int(torch.randperm(rows, generator=generator("order", *what, epoch))[place])


def mine(work: Sequence[T]) -> list[tuple[int, T]]:
    """This process's share of some work, with its numbers; see `own_part`."""
    return own_part(list(enumerate(work)))
