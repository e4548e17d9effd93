"""SIGTERM: what is under way ends at once, or when it looks."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

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


def test_a_forked_process_ends_as_it_would(capfd: pytest.CaptureFixture[str]) -> None:
    """Such as a worker of a pool, which is ended by SIGTERM."""
    fork = multiprocessing.get_context("fork")
    is_there = fork.Event()

    def wait() -> None:
        is_there.set()
        time.sleep(60)

    with watched():
        child = fork.Process(target=wait)
        child.start()
        is_there.wait()  # Python forgets what comes while it forks
        child.terminate()
        child.join()
    assert child.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


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


SLOW = """
import pathlib, signal, subprocess, sys, time
loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def end(*_):
    time.sleep(0.5)  # as a step and its checkpoint take
    if loader.poll() is None:
        pathlib.Path("checkpoint").write_text("")
    loader.kill()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path("begun").write_text("")
time.sleep(60)
"""
"""What ends in its own time, and needs what it has started for that."""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
"""What ends at once and leaves what it has started behind, as `accelerate launch` does."""


@pytest.mark.parametrize("interruption", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_ends_all_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: signal.Signals
) -> None:
    """The process that the command has started ends in its own time, and is waited for."""
    monkeypatch.chdir(tmp_path)

    def strike() -> None:
        while not Path("begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), interruption)
        time.sleep(0.2)
        if interruption == signal.SIGTERM:
            os.kill(os.getpid(), interruption)  # another one changes nothing

    def work() -> None:
        with watched(), subprocess.Popen([sys.executable, "-c", LAUNCHER, SLOW]) as process:
            threading.Thread(target=strike).start()
            try:
                process.wait()
            finally:
                termination.terminate(process.pid)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs behind it ignore it
    try:
        with pytest.raises(TerminatedError if interruption == signal.SIGTERM else KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert Path("checkpoint").exists()
