"""How many cores there are to compute on."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many CPU cores this process may run on, where the system says: a job may have only some of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
