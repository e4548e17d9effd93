"""One run of many: a recipe and its folder, done by `aurora train` wherever an engine puts it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ... import files, termination
from ...errors import DIVERGED, AuroraError, RunLockedError, UserError, one_line
from ...train.publish import LOG, RECIPE, check_recipe, is_locked, write_recipe
from ...train.recipe import RunRecipe, check_same_recipe
from ...train.results import Result, lacking, read_result
from .runs_file import RunsFile

_LAUNCHER_FAILED = ("CalledProcessError", "ChildFailedError")
"""What Accelerate raises where a process that it has started failed: of one process, and of several."""
_OF_TORCHRUN = re.compile(r"[IWEF]\d{4} .*torch/distributed/")


@dataclass(frozen=True)
class Job:
    """A run to be had.

    Args:
        name: how tables and messages call it.
        recipe: what to run.
        folder: where; a finished run there is taken as it is.
        runs: of a study: the file of its finished runs, which are taken from there.
    """

    name: str
    recipe: RunRecipe
    folder: Path
    runs: RunsFile | None = None

    def result(self) -> Result | None:
        """The result, if the run is finished, with scores of all test sets that are wanted.

        Raises:
            UserError: the folder, or the file of the finished runs, holds another recipe's run; or the file has the run
                without a test set that is wanted, and its adapter is gone.
        """
        kept = None if self.runs is None else self.runs.get(self.folder)
        if self.runs is not None and kept is not None:
            check_same_recipe(kept["recipe"], self.recipe, self.runs.path, f"{self.runs.path} holds for {self.folder}")
            if not lacking(kept, self.recipe):
                return kept
        check_recipe(self.folder, self.recipe)
        result = read_result(self.folder)
        if self.runs is not None and kept is not None and result is None:
            asked = ", ".join(lacking(kept, self.recipe))
            raise UserError(
                f"{self.runs.path} has the run {self.folder} without {asked}, and its adapter, which would be scored "
                "on that, is gone: ask for the task.test_sets that it has, or choose another output folder"
            )
        return None if result is None or lacking(result, self.recipe) else result

    def finished(self) -> Result | None:
        """The job's `result()`; None also where what is there cannot be used, which running the job says."""
        try:
            return self.result()
        except UserError:
            return None

    def status(self) -> str:
        """`finished`, `started` or `to do`."""
        if self.finished() is not None:
            return "finished"
        return "started" if (self.folder / RECIPE).exists() else "to do"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, an error, or neither where another process is at it.

    Args:
        job: which.
        result: of the finished run.
        error: why there is none.
        was_there: the run was finished before, or had diverged: nothing was run.
        was_refused: nothing was run, as there was no room for it, which may pass.
    """

    job: Job
    result: Result | None = None
    error: str | None = None
    was_there: bool = False
    was_refused: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process is running the job now."""
        return self.result is None and self.error is None


def run_job(job: Job) -> Outcome:
    """Run a job in this process. What it prints goes to `log.txt` in its folder; it never raises but for Ctrl-C."""
    from ...train.progress import quiet_libraries
    from .recipe_kinds import train_any

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
            except RunLockedError:  # the log is the other process's
                raise
            except Exception:
                traceback.print_exc()
                raise
    except RunLockedError:
        return Outcome(job)
    except Exception as error:
        kind = "" if isinstance(error, AuroraError) else f"{type(error).__name__}: "
        return Outcome(job, error=f"{kind}{one_line(error)}")


def run_until_asked(run: Callable[[Job], Outcome], job: Job, *signals: signal.Signals) -> Outcome:
    """Run a job in a worker process, which SIGTERM ends after a checkpoint of the step that it comes in.

    Args:
        run: runs it.
        job: what to run.
        signals: others that do the same; their own handlers are called then, such as submitit's, which may queue the
            job again.

    Raises:
        TerminatedError: the process is no worker: it watches for SIGTERM itself.
    """
    before, is_own = {number: signal.getsignal(number) for number in signals}, not termination.is_watched()
    try:
        with termination.watched(*signals):
            return run(job)
    except termination.TerminatedError as error:
        if not is_own:
            raise
        handler = before.get(signal.Signals(error.number))
        if callable(handler):
            handler(error.number, None)
        return Outcome(job, error="its process was told to end; it goes on from its last checkpoint")


def launch_job(job: Job) -> Outcome:
    """Run a job under `accelerate launch`, as the user has configured Accelerate: on all its GPUs, or all its hosts."""
    try:
        files.check_writable(job.folder)
        if is_locked(job.folder):
            return Outcome(job)
        check_recipe(job.folder, job.recipe)
        write_recipe(job.folder, job.recipe)
        recipe, folder = str(job.folder / RECIPE), str(job.folder)
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "aurora_lora.cli", "train", recipe]
        if sets := job.recipe.test_sets:  # may be others than those of an earlier run there
            command.append(f"task.test_sets={json.dumps(sets)}")
        before = (job.folder / LOG).stat().st_size if (job.folder / LOG).exists() else 0
        with (job.folder / LOG).open("a", encoding="utf-8") as log:
            code = termination.call([*command, "--output", folder], log)
        result = job.result()
    except UserError as error:
        return Outcome(job, error=str(error))
    if result is None and is_locked(job.folder):  # another process was quicker
        return Outcome(job)
    if result is None:
        return Outcome(job, error=f"exit code {code}: {_why(job.folder / LOG, before)}")
    return Outcome(job, result)


def _why(log: Path, before: int) -> str:
    """Why a launched run failed: that it diverged, or the last line that is not of its launcher.

    Args:
        log: what the run and its launcher print to.
        before: its length, in bytes, before they were started.
    """
    text = log.read_bytes()[before:].decode(errors="replace")
    if DIVERGED in text:
        return text[text.index(DIVERGED) :].splitlines()[0][:200]
    own, _, last = text.rpartition("Traceback (most recent call last)")
    for part in (own if any(name in last for name in _LAUNCHER_FAILED) else "", text):
        lines = [line.strip() for line in part.splitlines() if line.strip() and not _OF_TORCHRUN.match(line)]
        if lines:
            return lines[-1][:200]
    return "it printed nothing"
