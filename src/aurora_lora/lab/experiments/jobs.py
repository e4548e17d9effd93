"""Many runs, each a recipe and its folder: one after the other in this process, or several at a time by `aurora train`.

What is finished is taken as it is, and what has diverged is not run again: both stand in the run's folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import files, termination
from ...errors import DIVERGED, ArgumentError, AuroraError, UserError, check_count, one_line
from ...machine import usable_cores
from ...train.finished_run import Result, read_result, test_sets
from ...train.publish import LOG, RECIPE, check_recipe, write_recipe
from ...train.recipe import RunRecipe

DIVERGENCE = "diverged.json"
"""In the folder of a run that diverged: its recipe, and the error."""
POLL_SECONDS = 0.5
"""Seconds between two looks at what is running."""
AURORA = (sys.executable, "-m", "aurora_lora.cli")


@dataclass(frozen=True)
class Job:
    """A run to be had.

    Args:
        name: how tables and messages call it.
        recipe: what to run.
        folder: where; a finished run there is taken as it is.
    """

    name: str
    recipe: RunRecipe
    folder: Path

    def result(self) -> Result | None:
        """The result, if the run is finished, with scores of all test sets that are wanted.

        Raises:
            UserError: the folder holds another recipe's run.
        """
        check_recipe(self.folder, self.recipe)
        result = read_result(self.folder)
        return None if result is None or set(self.recipe.test_sets) - set(test_sets(result)) else result

    def finished(self) -> Result | None:
        """The job's `result()`; None also where what is there cannot be used, which running the job says."""
        with contextlib.suppress(UserError):
            return self.result()
        return None

    def diverged(self) -> str | None:
        """The error of a run of this recipe that diverged, as it would again."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = files.parse_json((self.folder / DIVERGENCE).read_text(encoding="utf-8"))
            return str(noted["error"]) if noted["recipe"] == self.recipe.resolved() else None
        return None

    def status(self) -> str:
        """`finished`, `started` or `to do`."""
        if self.finished() is not None:
            return "finished"
        return "started" if (self.folder / RECIPE).exists() else "to do"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, or why there is none.

    Args:
        job: which.
        result: of the finished run.
        error: why there is none.
    """

    job: Job
    result: Result | None = None
    error: str | None = None

    @property
    def line(self) -> str:
        """What a person sees of it."""
        if self.result is None:
            return f"failed: {self.error}"
        chosen, took = self.result["metric"]["selected_by"], self.result["time"]["train_s"]
        value = files.NOT_FINITE if chosen["value"] is None else f"{chosen['value']:.4f}"
        return f"validation {chosen['name']} {value}, {took:.0f} s of training"

    def failure(self) -> dict[str, str]:
        """Run, error and folder of one that failed."""
        return {"run": self.job.name, "error": self.error or "", "folder": str(self.job.folder)}


Runner = Callable[[Iterable[Job]], Iterator[Outcome]]
"""Runs jobs, and gives what became of each as it ends. A job is drawn only when there is room for it."""


def make_runner(jobs: int | None = None) -> Runner:
    """The runner for so many runs at a time: one is run in this process, several are each in a process of its own.

    Args:
        jobs: how many; None is one, or one on each GPU.

    Raises:
        UserError: a number of jobs below 1, or above that of the GPUs.
    """
    check_count("jobs", jobs)
    devices = _gpus()
    slots = jobs or max(1, len(devices))
    if devices and slots > len(devices):
        raise ArgumentError(f"`jobs`: {slots} runs at a time on {len(devices)} GPUs (allowed: up to {len(devices)})")
    if slots == 1:
        return in_turn
    return functools.partial(at_once, slots=slots, devices=devices)


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def _ended_before(job: Job) -> Outcome | None:
    """The outcome of a job that is finished, that has diverged, or that cannot be run where it is."""
    try:
        found = job.result()
    except UserError as error:
        return Outcome(job, error=str(error))
    if found is not None:
        return Outcome(job, found)
    return None if (why := job.diverged()) is None else Outcome(job, error=why)


def _noted(outcome: Outcome) -> Outcome:
    """The outcome; a divergence is noted in the run's folder."""
    if outcome.error is not None and DIVERGED in outcome.error:
        note = {"error": outcome.error, "recipe": outcome.job.recipe.resolved()}
        files.write_json(outcome.job.folder / DIVERGENCE, note)
    return outcome


# ---------------------------------------------------------------- here


def run_job(job: Job) -> Outcome:
    """Run a job in this process. What it prints goes to `log.txt` in its folder; it never raises but for Ctrl-C."""
    from ...diffusion.run import train_any
    from ...train.trainer import quiet_libraries

    try:
        files.check_writable(job.folder)
        with (
            (job.folder / LOG).open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                quiet_libraries()
                return Outcome(job, train_any(job.recipe, job.folder).result)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        kind = "" if isinstance(error, AuroraError) else f"{type(error).__name__}: "
        return Outcome(job, error=f"{kind}{one_line(error)}")


def in_turn(jobs: Iterable[Job], run: Callable[[Job], Outcome] = run_job) -> Iterator[Outcome]:
    """Run jobs one after the other in this process; see `Runner`."""
    for job in jobs:
        known = _ended_before(job)
        yield _noted(run(job)) if known is None else known


# ---------------------------------------------------------------- in processes of their own


def at_once(
    jobs: Iterable[Job],
    slots: int,
    devices: Sequence[str] = (),
    command: Sequence[str] = AURORA,
) -> Iterator[Outcome]:
    """Run jobs, each `aurora train` in a process of its own, on a GPU or a share of the cores: a death ends one run.

    Where this is interrupted, each run that is under way ends after the checkpoint of its step.

    Args:
        jobs: see `Runner`.
        slots: how many at a time.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES numbers them.
        command: that starts `aurora`.
    """
    waiting = iter(jobs)
    running: dict[Hashable, _Process] = {}
    places: Sequence[Hashable] = devices or range(slots)
    try:
        while True:
            while len(running) < slots and (job := next(waiting, None)) is not None:
                if (known := _ended_before(job)) is not None:
                    yield known
                    continue
                place = next(place for place in places if place not in running)
                own = {"OMP_NUM_THREADS": str(max(1, usable_cores() // slots))}
                own |= {"CUDA_VISIBLE_DEVICES": str(place)} if devices else {}
                try:
                    running[place] = _start(job, command, own)
                except UserError as error:
                    yield Outcome(job, error=str(error))
            if not running:
                return
            ended = [place for place, one in running.items() if one.process.poll() is not None]
            for place in ended:
                yield _noted(running.pop(place).outcome())
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for one in running.values():
            termination.terminate(one.process.pid)


@dataclass(frozen=True)
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    before: int
    """Bytes of the log before it was started."""

    def outcome(self) -> Outcome:
        code = self.process.returncode
        if code < 0 and -code != signal.SIGTERM:
            return Outcome(self.job, error="its process was killed (out of memory?)")
        if (result := self.job.finished()) is not None:
            return Outcome(self.job, result)
        text = (self.job.folder / LOG).read_bytes()[self.before :].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it printed nothing"]
        line = next((one[one.index(DIVERGED) :] for one in lines if DIVERGED in one), lines[-1])
        return Outcome(self.job, error=f"exit code {code}: {line[:200]}")


def _start(job: Job, command: Sequence[str], environment: dict[str, str]) -> _Process:
    files.check_writable(job.folder)
    write_recipe(job.folder, job.recipe)
    arguments = ["train", str(job.folder / RECIPE), "--output", str(job.folder)]
    if job.recipe.test_sets:  # may be others than those of an earlier run there
        arguments.append(f"task.test_sets={json.dumps(job.recipe.test_sets)}")
    with (job.folder / LOG).open("a", encoding="utf-8") as log:
        before = log.tell()
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env={**os.environ, **environment})
    return _Process(job, process, before)
