"""Many runs: in this process, and several at a time in processes of their own; what ends them, and what is kept."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from aurora_lora.errors import DIVERGED, UserError
from aurora_lora.lab.experiments import jobs as module
from aurora_lora.lab.experiments.jobs import Job, Outcome, at_once, in_turn, make_runner
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.suite import Suite


@pytest.fixture
def jobs(tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    tiny_suite()
    return list(prepare("tiny", "packaged", tmp_path / "runs").jobs.values())


def script(tmp_path: Path, text: str) -> list[str]:
    """A command that runs a program in the place of `aurora`."""
    (tmp_path / "stand_in.py").write_text(text)
    return [sys.executable, str(tmp_path / "stand_in.py")]


def test_each_process_has_a_device_and_the_recipe_and_dies_alone(jobs: list[Job], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "command, recipe, output, folder = sys.argv[1:5]\n"
        "if 'lora-' in folder.replace('aurora-', ''):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(0.3)\n"
        "print('noise')\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], open(recipe).readline().strip(), command, output)\n"
        "sys.exit(2)\n"
    )
    drawn: list[str] = []

    def draw() -> Iterator[Job]:
        for job in jobs:
            drawn.append(job.name)
            yield job

    found: dict[str, str] = {}
    for one in at_once(draw(), 2, ["3", "5"], script(tmp_path, program)):
        found[one.job.name] = str(one.error)
        assert len(drawn) <= len(found) + 2  # each that is drawn may be one of a budget, or see what came before it
    assert len(found) == 8
    killed = {error for name, error in found.items() if name.startswith("lora")}
    assert killed == {"its process was killed (out of memory?)"}
    for name, error in found.items():
        if name.startswith("aurora"):
            assert error in {f"exit code 2: {device} name: tiny-{name.split(',')[0]} train --output" for device in "35"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (f"aurora: {DIVERGED}: at step 3\naurora: {DIVERGED}: at step 4", f"{DIVERGED}: at step 3"),
        ("MemoryError: 4 GB\n\n", "MemoryError: 4 GB"),
        ("", "it printed nothing"),
    ],
)
def test_why_a_run_failed_is_said_by_the_run(jobs: list[Job], tmp_path: Path, printed: str, said: str) -> None:
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "log.txt").write_text(f"of an earlier call: {DIVERGED}\n")
    command = script(tmp_path, f"import sys; print({printed!r}); sys.exit(1)")
    (outcome,) = at_once(jobs[:1], 1, command=command)
    assert outcome.error == f"exit code 1: {said}"


def test_what_diverged_is_not_run_again_with_the_same_recipe(jobs: list[Job]) -> None:
    ran: list[str] = []

    def run(job: Job) -> Outcome:
        ran.append(job.name)
        return Outcome(job, error=f"{DIVERGED}: at step 3" if job is jobs[0] else "the disk is full")

    for _ in range(2):
        assert [one.error for one in in_turn(jobs[:2], run)] == [f"{DIVERGED}: at step 3", "the disk is full"]
    assert ran == [jobs[0].name, jobs[1].name, jobs[1].name]
    other = Job("other", jobs[0].recipe.model_copy(update={"seed": 7}), jobs[0].folder)
    assert (jobs[0].diverged() is not None, other.diverged()) == (True, None)


@pytest.mark.slow
def test_an_interrupt_waits_for_the_checkpoints(jobs: list[Job], tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[4])\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        "    (folder / 'checkpoint').write_text('')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "(folder / 'begun').write_text('')\n"
        "time.sleep(60)\n"
    )

    def strike() -> None:
        while not all((job.folder / "begun").exists() for job in jobs[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Thread(target=strike).start()
        with pytest.raises(KeyboardInterrupt):
            list(at_once(jobs[:2], 2, command=script(tmp_path, program)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert all((job.folder / "checkpoint").exists() for job in jobs[:2])


def test_how_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="`jobs` must be at least 1, got 0"):
        make_runner(0)
    monkeypatch.setattr(module, "_gpus", lambda: ["3"])
    assert make_runner() is in_turn
    with pytest.raises(UserError, match=r"`jobs`: 2 runs at a time on 1 GPUs \(allowed: up to 1\)"):
        make_runner(2)
