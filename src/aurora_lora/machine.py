"""What this process may use of its machine: cores, main memory; and which of the launched processes it is."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
_NAMES = ("memory.max", "memory.current", "inactive_file")
_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

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
    joined: Any = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    if joined is not None and "process_index" in joined._shared_state:  # which is there when all have joined
        return bool(joined().is_main_process)
    return _rank(_OF_ALL) in (None, 0)


def place_of_launch() -> tuple[int, int | None]:
    """The rank of this process in the whole launch, and on its machine; that is None where no launcher says it."""
    return _rank(_OF_ALL) or 0, _rank(_ON_ITS_MACHINE)


def _rank(names: tuple[str, ...]) -> int | None:
    """The largest rank of those that are set, as more than one launcher may have set them."""
    return max((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default=None)


def total_memory() -> int:
    """Bytes that this process could take, were nothing else there."""
    return int(min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())]))


def free_memory() -> int:
    """Bytes that are free for this process."""
    return int(min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in _limits())]))


def _limits() -> Iterator[tuple[float, float]]:
    """The limit of each of Linux's control groups that the process is in, and what is used of it, where it has one.

    Pages of files that nobody has looked at for a while count as free, as they do for the machine.
    """
    for folder, (limit, used, idle) in _groups():
        most = _number(folder / limit)
        if most < math.inf:
            yield most, _number(folder / used, otherwise=0) - _idle(folder, idle)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the groups, and what the files are called there.

    In a container the paths may be those of the machine, which has other folders: the upper one is the container's.
    """
    for line in ["0::/", "1:memory:/", *_lines(OWN_GROUPS)]:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers:
            root, names = CONTROL_GROUPS, _NAMES
        elif "memory" in controllers.split(","):
            root, names = CONTROL_GROUPS / "memory", _OF_VERSION_1
        else:
            continue
        parts = PurePosixPath(path).parts[1:]
        if ".." not in parts:
            yield from ((root.joinpath(*parts[:count]), names) for count in range(len(parts) + 1))


def _idle(folder: Path, name: str) -> float:
    found = (line.split() for line in _lines(folder / "memory.stat"))
    return next((float(words[1]) for words in found if words[:1] == [name]), 0.0)


def _number(file: Path, otherwise: float = math.inf) -> float:
    """What a file says; `otherwise` where there is none, or it says "max"."""
    try:
        return float(int(file.read_text()))
    except (OSError, ValueError):
        return otherwise


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
