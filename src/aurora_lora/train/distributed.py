"""This process among its peers, under `accelerate launch` and alone: one writes and decides, all follow; its memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import psutil
import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list, reduce  # type: ignore[import-untyped]

from .. import termination
from ..errors import UserError

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
    return _in_any(here) if termination.is_watched() else here


def check_as_many(folder: Path, before: int, now: int) -> None:
    """Raise a UserError if a run that goes on in a folder was started with another number of processes."""
    if before != now:
        raise UserError(
            f"{folder} was started with {before} process(es), this is {now}: go on with as many, or choose another "
            "output folder"
        )


def check_precision(precision: str) -> None:
    """Raise a UserError if this machine cannot train in a precision of a recipe."""
    if precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("training.precision: 'fp16' needs a GPU (allowed here: 'fp32', 'bf16')")


def _in_any(here: bool) -> bool:
    """Whether something is so in any of the processes."""
    if state().num_processes == 1:
        return here
    return bool(reduce(torch.tensor(float(here), device=state().device), "sum") > 0)


# ---------------------------------------------------------------- memory


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
