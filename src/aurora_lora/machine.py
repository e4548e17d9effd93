"""How many cores there are for this process, and which of the launched processes it is."""

from __future__ import annotations

import os
import sys
from typing import Any

_OF_ALL = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_ON_ITS_MACHINE = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
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
    return _rank(_OF_ALL) in (None, 0)


def place_of_launch() -> tuple[int, int | None]:
    """The rank of this process in the whole launch, and on its machine; that is None where no launcher says it."""
    return _rank(_OF_ALL) or 0, _rank(_ON_ITS_MACHINE)


def _rank(names: tuple[str, ...]) -> int | None:
    """The largest rank of those that are set, as more than one launcher may have set them."""
    return max((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default=None)
