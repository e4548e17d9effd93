"""Runs of many: each a recipe and its folder, done by `aurora train` here, in processes of their own, under Accelerate,
or as jobs of a cluster through submitit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ... import files, termination
from ...errors import DIVERGED, ArgumentError, AuroraError, UserError, check_count, one_line, unknown
from ...extras import extra
from ...machine import usable_cores
from ...train.publish import LOG, RECIPE, check_recipe, write_recipe
from ...train.recipe import RunRecipe
from ...train.results import Result, read_result, test_sets

LAUNCHERS = ("local", "accelerate", "slurm")
DAY = 24 * 60
"""Minutes."""
POLL_SECONDS = 0.5
"""Seconds between two looks at what is running."""
_TORCHRUN = re.compile(r"[IWEF]\d{4} .*torch/distributed/")
_GPUS = ("gpus_per_node", "gpus_per_task", "num_gpus", "gres")


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
        was_there: the run was finished before, or had diverged: nothing was run.
    """

    job: Job
    result: Result | None = None
    error: str | None = None
    was_there: bool = False


class Running(Protocol):
    """A job under way."""

    def outcome(self) -> Outcome | None:
        """What became of it; None while it is running."""

    def stop(self) -> None:
        """End it after the checkpoint of its step."""


class Engine(Protocol):
    """Starts jobs, `slots` at a time."""

    slots: int

    def start(self, job: Job) -> Running | None:
        """Begin a job; None where there is no room for it now."""


def outcomes(jobs: Iterable[Job], engine: Engine) -> Iterator[Outcome]:
    """Run jobs; gives what became of each as it ends. A job is drawn only when there is room for it."""
    waiting, running = iter(jobs), list[Running]()
    refused: deque[Job] = deque()
    try:
        while True:
            while len(running) < engine.slots:
                job = refused.popleft() if refused else next(waiting, None)
                if job is None:
                    break
                if (known := _without_running(job)) is not None:
                    yield known
                elif (started := engine.start(job)) is not None:
                    running.append(started)
                elif running:
                    refused.append(job)
                    break
                else:
                    yield Outcome(job, error=getattr(engine, "refusal", "there is no room for it"))
            if not running:
                return
            ended = [(one, outcome) for one in running if (outcome := one.outcome()) is not None]
            for one, outcome in ended:
                running.remove(one)
                yield outcome
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.stop()


def _without_running(job: Job) -> Outcome | None:
    """The outcome of a job that is finished, or that cannot be run where it is."""
    try:
        found = job.result()
    except UserError as error:
        return Outcome(job, error=str(error))
    return None if found is None else Outcome(job, found, was_there=True)


def make_engine(
    launcher: str,
    jobs: int | None,
    options: Mapping[str, str] | None = None,
    minutes: Callable[[Job], int] = lambda job: DAY,
    prepare: Callable[[], object] = lambda: None,
) -> Engine:
    """The engine of that name.

    Args:
        launcher: `local`: here, or in `jobs` processes, one on each GPU where there are GPUs. `accelerate`: one run at
            a time under `accelerate launch`. `slurm`: each run a job of the cluster, through submitit.
        jobs: how many runs at a time; None is one, one a GPU, or 64 on a cluster, whose `cluster=local` is one.
        options: submitit's parameters for the cluster, such as `slurm_partition`.
        minutes: the time to ask the cluster for, for a job.
        prepare: called before the first job is run.

    Raises:
        UserError: an unknown launcher, a number of jobs below 1, options that no launcher takes.
    """
    if launcher not in LAUNCHERS:
        raise ArgumentError(f"`launcher`: '{launcher}' is an {unknown('launcher', LAUNCHERS, launcher)}")
    check_count("jobs", jobs)
    if options and launcher != "slurm":
        raise ArgumentError(f"`options` is for `launcher` slurm, not for {launcher}")
    if launcher == "slurm":
        here = (options or {}).get("cluster") in ("local", "debug")  # submitit's names for this machine
        return Cluster(jobs or (1 if here else 64), dict(options or {}), minutes, prepare)
    devices = _gpus() if launcher == "local" else []
    slots = jobs or max(1, len(devices))
    if launcher == "accelerate":
        if slots > 1:
            raise ArgumentError("`jobs`: with `launcher` accelerate, one run at a time has all devices (allowed: 1)")
        launch = ["-m", "accelerate.commands.launch"]
        return Processes(1, [], [sys.executable, *launch, "-m", "aurora_lora.cli"], prepare)
    if devices and slots > len(devices):
        raise ArgumentError(f"`jobs`: {slots} runs at a time on {len(devices)} GPUs (allowed: up to {len(devices)})")
    own = [sys.executable, "-m", "aurora_lora.cli"]
    return InProcess(run_job, prepare) if slots == 1 else Processes(slots, devices, own, prepare)


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


# ---------------------------------------------------------------- here


@dataclass(frozen=True)
class Done:
    """A job that has ended."""

    result: Outcome

    def outcome(self) -> Outcome:
        """What became of it."""
        return self.result

    def stop(self) -> None:
        """Nothing is left to end."""


@dataclass
class InProcess:
    """One job at a time, in this process, by a function; `prepare` is called before the first."""

    run: Callable[[Job], Outcome]
    prepare: Callable[[], object] | None = None
    slots: int = 1

    def start(self, job: Job) -> Running:
        """Run a job."""
        if self.prepare is not None:
            self.prepare()
            self.prepare = None
        return Done(self.run(job))


def run_job(job: Job) -> Outcome:
    """Run a job in this process. What it prints goes to `log.txt` in its folder; it never raises but for Ctrl-C."""
    from ...diffusion.recipe_kinds import train_any
    from ...train.progress import quiet_libraries

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


# ---------------------------------------------------------------- in processes of their own


@dataclass
class Processes:
    """Each job `aurora train` in a process of its own, on a GPU or a share of the cores: a death ends one run.

    Args:
        slots: how many at a time.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES numbers them.
        command: that starts `aurora`.
        prepare: called before the first job.
    """

    slots: int
    devices: list[str]
    command: Sequence[str]
    prepare: Callable[[], object] | None = None
    running: list[_Process] = field(default_factory=list)

    def start(self, job: Job) -> Running:
        """Begin a job."""
        if self.prepare is not None:
            self.prepare()
            self.prepare = None
        self.running = [one for one in self.running if one.process.poll() is None]
        busy = {one.device for one in self.running}
        device = next((one for one in self.devices if one not in busy), None)
        own = {"OMP_NUM_THREADS": str(max(1, usable_cores() // self.slots))} if self.slots > 1 else {}
        own |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        try:
            files.check_writable(job.folder)
            write_recipe(job.folder, job.recipe)
        except UserError as error:
            return Done(Outcome(job, error=str(error)))
        arguments = ["train", str(job.folder / RECIPE), "--output", str(job.folder)]
        if job.recipe.test_sets:  # may be others than those of an earlier run there
            arguments.append(f"task.test_sets={json.dumps(job.recipe.test_sets)}")
        with (job.folder / LOG).open("a", encoding="utf-8") as log:
            before = log.tell()
            process = subprocess.Popen([*self.command, *arguments], stdout=log, stderr=log, env={**os.environ, **own})
        started = _Process(job, process, device, before)
        self.running.append(started)
        return started


@dataclass(frozen=True, eq=False)
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    device: str | None
    before: int
    """Bytes of the log before it was started."""

    def outcome(self) -> Outcome | None:
        if (code := self.process.poll()) is None:
            return None
        if code < 0 and -code != signal.SIGTERM:
            return Outcome(self.job, error="its process was killed (out of memory?)")
        if (found := _without_running(self.job)) is None:
            return Outcome(self.job, error=self._why(code))
        return Outcome(self.job, found.result, found.error)

    def _why(self, code: int) -> str:
        """The divergence, or the last line that is not of a launcher."""
        text = (self.job.folder / LOG).read_bytes()[self.before :].decode(errors="replace")
        if DIVERGED in text:
            return f"exit code {code}: {text[text.index(DIVERGED) :].splitlines()[0][:200]}"
        own, _, last = text.rpartition("Traceback (most recent call last)")
        parts = (own if any(name in last for name in ("CalledProcessError", "ChildFailedError")) else "", text)
        lines = [line.strip() for part in parts for line in reversed(part.splitlines()) if not _TORCHRUN.match(line)]
        return f"exit code {code}: {next(filter(None, lines), 'it printed nothing')[:200]}"

    def stop(self) -> None:
        termination.terminate(self.process.pid)


# ---------------------------------------------------------------- on a cluster


class Cluster:
    """Each job a job of the cluster, through submitit, on one GPU unless the options say otherwise.

    Args:
        slots: how many are queued or running at a time.
        options: submitit's parameters, such as `slurm_partition=gpu` or `timeout_min=120`; `cluster=local` runs them
            here, which shows that a list works before it waits in a queue.
        minutes: the time to ask for, for a job, where the options name none.
        prepare: called before the first job.
    """

    def __init__(
        self,
        slots: int,
        options: dict[str, str],
        minutes: Callable[[Job], int],
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        with extra("slurm"):
            import submitit
        self.slots, self.prepare, self.is_ready = slots, prepare, False
        self.signal = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        self.minutes = None if {"timeout_min", "slurm_time"} & set(options) else minutes
        cluster = options.pop("cluster", None)
        folder = Path(options.pop("logs", "runs/submitit"))
        try:
            self.executor = submitit.AutoExecutor(folder / "%j", cluster=cluster)
            if cluster is None and self.executor.cluster != "slurm":
                raise ArgumentError("`launcher` slurm: there is no Slurm here (srun is not found)")
            wanted: dict[str, Any] = {"name": "aurora"}
            if self.executor.cluster == "slurm" and not any(name.removeprefix("slurm_") in _GPUS for name in options):
                wanted["gpus_per_node"] = 1
            wanted.update({name: _value(name, text) for name, text in options.items()})
            self.executor.update_parameters(**wanted)
        except ArgumentError:
            raise
        except (AssertionError, NameError, ValueError, TypeError, RuntimeError) as error:
            raise ArgumentError(f"`options`: {one_line(error)}") from error

    def start(self, job: Job) -> Running | None:
        """Submit a job; None where the cluster does not take it, such as one more than a user may have there."""
        if not self.is_ready:
            self.prepare()
            self.is_ready = True
        try:
            wanted = {} if self.minutes is None else {"timeout_min": self.minutes(job)}
        except UserError as error:  # its run would say the same, after it has waited in a queue
            return Done(Outcome(job, error=str(error)))
        try:
            self.executor.update_parameters(**wanted)
            # a little before its time is up, or where it is preempted, submitit's job gets that signal
            return _ClusterJob(job, self.executor.submit(run_until_asked, job, self.signal))
        except Exception as error:
            self.refusal = f"the cluster did not take it: {one_line(error)[:200]}"
            return None


@dataclass(frozen=True, eq=False)
class _ClusterJob:
    """One that was lost (a node went down, time ran out) is an error, no exception; an interrupt leaves it there."""

    job: Job
    submitted: Any

    def outcome(self) -> Outcome | None:
        if not self.submitted.done():
            return None
        try:
            found: Outcome = self.submitted.result()
        except Exception as error:
            why = one_line(error)[:200]
            return Outcome(self.job, error=f"the cluster's job {self.submitted.job_id} was lost: {why}")
        return found

    def stop(self) -> None:
        """Leave it in the queue."""


def run_until_asked(job: Job, *signals: signal.Signals, run: Callable[[Job], Outcome] = run_job) -> Outcome:
    """Run a job in a process of the cluster, which SIGTERM ends after a checkpoint of the step that it comes in.

    Args:
        job: what to run.
        signals: others that do the same; their own handlers are called then, such as submitit's, which may queue the
            job again.
        run: runs it.

    Raises:
        TerminatedError: SIGTERM is this process's own to watch for: the job runs in that of the command.
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


def _value(name: str, text: str) -> Any:
    """The value of a parameter of submitit, which checks the types of some and writes the others as they are."""
    own = name.removeprefix("slurm_")
    if own in ("setup", "teardown", "srun_args"):
        return [text]
    if own in ("stderr_to_stdout", "use_srun", "exclusive") and text in ("true", "false"):
        return True if text == "true" else None if own == "exclusive" else False  # None is left out
    if own != "name" and re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    return float(text) if own == "mem_gb" and re.fullmatch(r"[0-9]+\.[0-9]+", text) else text
