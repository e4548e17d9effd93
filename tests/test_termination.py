"""SIGTERM: what is under way ends at once, or when it looks."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from aurora_lora import termination
from aurora_lora.termination import TerminatedError, deferred, watched


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.getsignal(signal.SIGTERM)  # the handler runs before the next line


def ended(work: Callable[[], None]) -> bool:
    """Whether it ends by a `TerminatedError`."""
    try:
        work()
    except TerminatedError:
        return True
    return False


def test_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with watched():
            assert termination.is_watched()
            terminate()

    assert ended(work)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not termination.is_watched()


def test_what_defers_it_looks_itself() -> None:
    seen = []

    def work() -> None:
        with deferred():
            seen.append(termination.asked())
            terminate()
            terminate()  # another one changes nothing
            seen.append(termination.asked())
            termination.stop()

    with watched():
        assert ended(work)
        assert seen == [False, True]
        assert ended(terminate)


def test_what_never_looks_is_ended_behind_it() -> None:
    done = []

    def work() -> None:
        with watched(), deferred():
            terminate()
            done.append(1)

    assert ended(work)
    assert done == [1]


def test_another_error_is_its_own() -> None:
    def work() -> None:
        with watched(), deferred():
            terminate()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    assert not termination.asked()  # nothing is left of it


def test_other_threads_and_programs_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look() -> None:
        with watched():
            seen.append((termination.is_watched(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
    with deferred():
        assert not termination.asked()
