"""Locks that one process holds at a time. The system lets go of them when the process ends, however it ends."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .files import check_writable

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The errors of a file system without locks, as some of the network are: there one goes on without."""


@contextmanager
def held(file: Path, if_taken: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Hold the lock on a file, once no other process does.

    Args:
        file: in a folder that is there.
        if_taken: is called before the wait for another process; what it raises comes instead of that.

    Raises:
        OSError, UserError: the file cannot be written.
    """
    # a mere file in place of a lock, as filelock offers it, would outlive a killed process
    lock = FileLock(file, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not file.exists():  # filelock waits for a folder that cannot be written as for a lock that is held
                check_writable(file.parent)
            if_taken()
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
