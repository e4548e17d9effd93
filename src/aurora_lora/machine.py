"""How many cores there are for this process, and which of the launched processes it is."""

from __future__ import annotations

import os
import sys
from typing import Any

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""The variables by which torchrun, Intel MPI (and MPICH) and Open MPI tell a process its rank."""


def usable_cores() -> int:
    """How many CPU cores this process may run on, where the system says: a job may have only some of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched_as_main() -> bool:
    """Whether this is that process; one that was started alone is.

    By the rank that a launcher gave it, until it has joined the others: Accelerate then knows whether there are others
    at all, as several that a scheduler has started may train each on a GPU of its own.
    """
    accelerate: Any = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.is_initialized():
        return bool(accelerate.PartialState().is_main_process)
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
