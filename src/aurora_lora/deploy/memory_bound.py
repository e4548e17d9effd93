"""How much memory a computation over batches may take."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from ..errors import CalibrationError
from ..machine import free_memory
from ..values import is_int, require
from .processes import least_of_processes, processes

T = TypeVar("T")

_MOST_OF_FREE = 0.9
"""The share of the free memory that is taken where half of it is not enough."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class MemoryBound:
    """A bound on memory.

    Args:
        size: in bytes.
        alone: the most that a unit may take which nothing can be put together with, in bytes; `size` if None.
        name: of the larger one, as an error calls it.
    """

    size: int
    alone: int | None = None
    name: str = "max_memory allows"

    @property
    def largest(self) -> int:
        """The most that one unit may take."""
        return self.size if self.alone is None else self.alone


def memory_bound(max_memory: float | str | None, *devices: torch.device) -> MemoryBound:
    """The bound that the user has set, or half of what is free; nine tenths for a unit that does not fit in that.

    Args:
        max_memory: in bytes, a whole number such as 4e9, or as in "4GiB"; by what is free if None.
        devices: of the model; the one with the least that is free counts.

    Raises:
        ValueError: no such size.
    """
    if max_memory is None:
        free = _free_everywhere(*devices)
        return MemoryBound(free // 2, int(_MOST_OF_FREE * free), "nine tenths of the memory that is free")
    return MemoryBound(_bytes(max_memory))


def check_memory(max_memory: float | str | None) -> None:
    """Raise a ValueError for a `max_memory` that is not allowed."""
    if max_memory is not None:
        _bytes(max_memory)


def _bytes(size: float | str) -> int:
    if isinstance(size, str):
        parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B|)\s*", size.upper())
        if parts and parts[2] in _UNITS:
            return int(float(parts[1]) * _UNITS[parts[2]])
    whole = int(size) if isinstance(size, float) and size.is_integer() else size  # 4e9
    require(is_int(whole, 1), "max_memory", size, "a number of bytes, or a size as '4GiB'")
    return int(whole)


class Need(NamedTuple):
    """Memory that a unit takes, in bytes."""

    kept: int
    """What it takes for as long as its group is worked on."""
    beside: int = 0
    """What it takes while the unit itself is worked on."""


def pack(
    units: Iterable[T], bound: MemoryBound, need: Callable[[T], Need], name: Callable[[T], str], what: str
) -> list[list[T]]:
    """Put units together, in their order, as long as they fit in the bound.

    Args:
        units: none of which can be divided.
        bound: on what a group keeps, and the most that one of its units takes beside that.
        need: of a unit.
        name: of a unit, as an error says it.
        what: it needs the memory for.

    Raises:
        CalibrationError: a unit does not fit alone.
    """
    groups: list[list[T]] = []
    kept = beside = 0
    for unit in units:
        its = need(unit)
        if sum(its) > bound.largest:
            raise CalibrationError(
                f"{name(unit)} needs {math.ceil(sum(its) / 2**20):,} MiB for {what}, more than {bound.name} "
                f"({bound.largest // 2**20:,} MiB)."
            )
        kept, beside = kept + its.kept, max(beside, its.beside)
        if not groups or kept + beside > bound.size:
            groups.append([])
            kept, beside = its
        groups[-1].append(unit)
    return groups


def _free_everywhere(*devices: torch.device) -> int:
    """The free memory, where there is least; the same number on every process: they must form the same groups."""
    return least_of_processes([min(map(_free, devices))], devices[0])[0]


def _free(device: torch.device) -> int:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes())) if processes() > 1 else 1  # that share the machine's
    if device.type == "cuda":
        return _free_on_cuda(device) // math.ceil(here / max(1, torch.cuda.device_count()))
    return free_memory() // here


def _free_on_cuda(device: torch.device) -> int:
    """What the device has free, and what PyTorch holds there without using it."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
