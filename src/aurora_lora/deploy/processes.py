"""What the processes of a distributed run tell each other. Each is to call these in the same order; one `alone` may."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor

from ..errors import CalibrationError

Calls = list[tuple[int, int]]


_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works for itself: nothing is summed, and the others need not come."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def several_processes() -> bool:
    """Whether this is one of several processes of a distributed run, which work together."""
    return not _alone.get() and processes() > 1


def processes() -> int:
    """How many there are in the distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(*totals: Tensor) -> None:
    """Sum each tensor over the processes, in place."""
    if several_processes():
        for each in totals:
            dist.all_reduce(each)


def count_over_processes(count: int, device: torch.device) -> int:
    """The sum of a count."""
    total = torch.tensor(count, device=device)
    sum_over_processes(total)
    return int(total)


def least_of_processes(numbers: Sequence[int], device: torch.device) -> list[int]:
    """The least that one of them has, of each number."""
    if not several_processes():
        return list(numbers)
    least = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return [int(number) for number in least]


def calls_of_processes(
    action: str, calls: Calls, failure: CalibrationError | None, most: int, device: torch.device
) -> list[Calls]:
    """What each process has called, by pairs of numbers.

    Args:
        action: the function that asks, for errors.
        calls: those of this process, `most` at most.
        failure: what went wrong on this process.
        most: the same on all.
        device: to exchange tensors on.

    Raises:
        CalibrationError: on every process, if one of them failed.
    """
    if not several_processes():
        if failure is not None:
            raise failure
        return [calls]
    rows = [(int(failure is not None), len(calls)), *calls, *[(0, 0)] * (most - len(calls))]
    mine = torch.tensor(rows, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    if failure is not None:
        raise failure
    found = [gathered.tolist() for gathered in everyone]
    for process, ((failed, _), *_) in enumerate(found):
        if failed:
            raise CalibrationError(f"{action} failed on process {process}, whose own error says why.")
    return [[(first, second) for first, second in pairs[:count]] for (_, count), *pairs in found]


def leave_processes() -> None:
    """Leave the distributed run, if this process is in one: nothing is exchanged any more.

    Its threads end here, in order. Left to the end of the process, one of them may ask for Python's lock when there is
    no Python any more, which aborts a process that has done its work. DDP's wrappers, which hold such threads too, are
    freed first.

    torch before 2.8 keeps the lock while it waits for gloo's threads, and waits for ever for one that still frees the
    tensors of the last exchange (pytorch/pytorch#154976): they get the time for that here.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        if Version(torch.__version__).release < (2, 8):
            time.sleep(0.1)
        dist.destroy_process_group()
