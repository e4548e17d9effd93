"""SIGTERM, by which schedulers end a job: what is under way ends at once, a training after the step it is at."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM has come. No `Exception`, as Ctrl-C is none: nobody takes it for a mistake that could be put right."""


class _State:
    watched = False
    """Whether SIGTERM comes here."""
    deferred = False
    """Whether someone looks from time to time whether it has come."""
    asked = False
    """Whether it has come."""
    process = 0
    """The process that watches: one that is forked from it, such as a worker of `datasets`, has its handler, too."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within this context SIGTERM raises a `TerminatedError`; at once, or when what is `deferred` looks.

    Does nothing outside the main thread, which alone may say what a signal does.
    """
    if _State.watched or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _ask)
    _State.watched, _State.process = True, os.getpid()
    try:
        yield
    finally:
        _State.watched, _State.asked = False, False
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within this context nothing is raised: the block asks `asked`, writes down how far it is, and calls `stop`.

    If it ends without that, the error comes then.
    """
    _State.deferred = True
    try:
        yield
    finally:
        _State.deferred = False
    if _State.asked:
        stop()


def is_watched() -> bool:
    """Whether SIGTERM is dealt with here: never in a program that only uses the library."""
    return _State.watched


def asked() -> bool:
    """Whether SIGTERM has come; another one changes nothing."""
    return _State.asked


def stop() -> None:
    """Raise the error."""
    raise TerminatedError


def terminate(pid: int) -> None:
    """End a process and its children by SIGTERM, and wait for all that they have started: a training among them writes
    its checkpoint first, for which it needs its loading processes."""
    import psutil

    with deferred(), contextlib.suppress(psutil.NoSuchProcess):  # another signal changes nothing meanwhile
        first = psutil.Process(pid)
        told, family = [first, *first.children()], [first, *first.children(recursive=True)]
        for one in told:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        psutil.wait_procs(family)


def _ask(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.process:  # it ends as it would without us
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _State.asked = True
    if not _State.deferred:
        stop()
