"""The largest memory that a run has in use."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path

import psutil
import torch


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
    """The largest memory of this process in use, in MiB, whether there is a GPU or not; see `peak_memory`."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    with contextlib.suppress(OSError, StopIteration):  # Linux hands what getrusage says on from the process before
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 2**10
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
