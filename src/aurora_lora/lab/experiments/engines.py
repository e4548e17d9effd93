"""Where jobs run: in this process, in worker processes, under Accelerate, or on a cluster through submitit."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from ...errors import ArgumentError, UserError, check_count, unknown
from ...machine import usable_cores
from ...train.publish import is_locked
from .cluster import Cluster
from .jobs import Job, Outcome, launch_job, run_job, run_until_asked

LAUNCHERS = ("local", "accelerate", "slurm")
DAY = 24 * 60
"""Minutes."""
ON_THIS_MACHINE = ("local", "debug")
"""Values of submitit's `cluster` by which it runs jobs on this machine instead of Slurm, all at once."""
POLL_SECONDS = 2.0
"""Seconds between two looks at a run that another process is at."""


class Engine(Protocol):
    """Takes jobs, gives futures. `slots` jobs are under way at a time."""

    slots: int

    def open(self) -> AbstractContextManager[Callable[[Job], Any]]:
        """Within this context, the function that submits a job: its value has `done()` and `result()`."""


def make_engine(
    launcher: str,
    jobs: int | None,
    options: Mapping[str, str] | None = None,
    minutes: Callable[[Job], int] = lambda job: DAY,
) -> Engine:
    """The engine of that name.

    Args:
        launcher: `local`: in `jobs` processes, one on each GPU where there are GPUs. `accelerate`: one run at a time
            under `accelerate launch`. `slurm`: each run a job of the cluster, through submitit.
        jobs: how many runs at a time; None is one, one a GPU, or 64 on a cluster, whose `cluster=local` is one.
        options: submitit's parameters for the cluster, such as `slurm_partition`.
        minutes: the time to ask the cluster for, for a job.

    Raises:
        UserError: an unknown launcher, a number of jobs below 1, options that no launcher takes.
    """
    if launcher not in LAUNCHERS:
        raise ArgumentError(f"`launcher`: '{launcher}' is an {unknown('launcher', LAUNCHERS, launcher)}")
    check_count("jobs", jobs)
    if options and launcher != "slurm":
        raise ArgumentError(f"`options` is for `launcher` slurm, not for {launcher}")
    if launcher == "slurm":
        given = dict(options or {})
        return Cluster(jobs or (1 if given.get("cluster") in ON_THIS_MACHINE else 64), given, minutes)
    if launcher == "accelerate":
        if jobs not in (None, 1):
            raise ArgumentError(
                "`jobs`: with `launcher` accelerate, one run at a time has all the devices (allowed: 1)"
            )
        return InProcess(launch_job)
    devices = _gpus()
    slots = jobs or max(1, len(devices))
    return InProcess(run_job) if slots == 1 else Workers(slots, devices)


def outcomes(jobs: Iterable[Job], engine: Engine) -> Iterator[Outcome]:
    """Run jobs; gives what became of each as it ends.

    A job is drawn only when there is room for it. One that is refused is submitted again when another has ended, and
    before that none is drawn. One that another process is at is put off, and then waited for: so several processes can
    work on the same list.
    """
    waiting, refused, put_off = iter(jobs), deque[Job](), deque[Job]()
    with engine.open() as submit:
        running: dict[Any, Job] = {}
        exhausted = is_full = False
        while True:
            while not is_full and len(running) < engine.slots:
                if (job := refused.popleft() if refused else next(waiting, None)) is None:
                    exhausted = True
                    if (job := _take_free(put_off)) is None:
                        break
                if (outcome := _without_running(job)) is not None:
                    yield outcome
                    continue
                future = submit(job)
                if running and future.done() and future.result().was_refused:
                    refused.append(job)
                    is_full = True
                else:  # what is refused where nothing is running is an error
                    running[future] = job
            if not running and not put_off:
                return
            if not running:
                time.sleep(POLL_SECONDS)
                continue
            for future in _ended(running, POLL_SECONDS if exhausted and put_off else None):
                running.pop(future)
                is_full = False
                outcome = future.result()
                if not outcome.is_elsewhere:
                    yield outcome
                    continue
                put_off.append(outcome.job)
                if exhausted:
                    time.sleep(POLL_SECONDS)


def _without_running(job: Job) -> Outcome | None:
    """The outcome of a job that is finished, or that cannot be run where it is."""
    try:
        found = job.result()
    except UserError as error:
        return Outcome(job, error=str(error))
    return None if found is None else Outcome(job, found, was_there=True)


def _take_free(put_off: deque[Job]) -> Job | None:
    """Take out the first job that no other process is at, if there is one."""
    free = next((job for job in put_off if not is_locked(job.folder)), None)
    if free is not None:
        put_off.remove(free)
    return free


def _ended(running: Mapping[Any, Job], timeout: float | None) -> list[Any]:
    """At least one that has ended; none after the timeout, in seconds."""
    if all(isinstance(future, Future) for future in running):
        return list(wait(running, timeout, return_when=FIRST_COMPLETED).done)
    while not (ended := [future for future in running if future.done()]):
        time.sleep(POLL_SECONDS)
        if timeout is not None:
            break
    return ended


class Prepared:
    """An engine that calls `prepare` before its first job: not at all where every run is there already."""

    def __init__(self, engine: Engine, prepare: Callable[[], object]) -> None:
        self.engine, self.prepare, self.slots = engine, prepare, engine.slots
        self._is_ready = False

    @contextmanager
    def open(self) -> Iterator[Callable[[Job], Any]]:
        with self.engine.open() as submit:

            def prepared(job: Job) -> Any:
                if not self._is_ready:
                    self.prepare()
                    self._is_ready = True
                return submit(job)

            yield prepared


# ---------------------------------------------------------------- here


class _Sequential(Executor):
    """Runs at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class InProcess:
    """One job at a time, in this process."""

    slots = 1

    def __init__(self, run: Callable[[Job], Outcome]) -> None:
        self.run = run

    def open(self) -> AbstractContextManager[Callable[[Job], Any]]:
        executor = _Sequential()
        return nullcontext(lambda job: executor.submit(self.run, job))


class Workers:
    """Worker processes, each on a share of the CPU or on a GPU of its own.

    Args:
        slots: how many.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES numbers them.
    """

    def __init__(self, slots: int, devices: list[str]) -> None:
        if devices and slots > len(devices):
            raise ArgumentError(
                f"`jobs`: {slots} runs at a time on {len(devices)} GPUs (allowed: up to {len(devices)})"
            )
        self.slots, self.devices = slots, devices

    def open(self) -> AbstractContextManager[Callable[[Job], Any]]:
        return _Pool(self.slots, self.devices)


class _Pool:
    """An executor of one process for each slot: a process that dies ends the one run that it had."""

    def __init__(self, slots: int, devices: list[str]) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.threads = max(1, usable_cores() // slots)
        self.idle: deque[_Worker] = deque()
        own: list[str | None] = [*devices[:slots]] or [None] * slots
        self.workers = [_Worker(self, device) for device in own]
        self.idle.extend(self.workers)

    def __enter__(self) -> Callable[[Job], Any]:
        return lambda job: self.idle.popleft().submit(job)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        for worker in self.workers:
            if kind is not None:  # an interrupt waits for a step and its checkpoint, not for the runs
                for process in list((getattr(worker.executor, "_processes", None) or {}).values()):
                    process.terminate()
            worker.executor.shutdown(wait=kind is None, cancel_futures=True)


class _Worker:
    def __init__(self, pool: _Pool, device: str | None) -> None:
        self.pool, self.device = pool, device
        self.executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self.pool.context, _start_worker, (self.pool.threads,))

    def submit(self, job: Job) -> Future[Outcome]:
        with _visible(self.device):  # the first job starts the process
            try:
                running = self.executor.submit(run_until_asked, run_job, job)
            except BrokenProcessPool:  # the process died in the run before this one, or after it
                self.executor = self._start()
                running = self.executor.submit(run_until_asked, run_job, job)
        outcome: Future[Outcome] = Future()
        running.add_done_callback(lambda ended: self._end(job, ended, outcome))
        return outcome

    def _end(self, job: Job, ended: Future[Outcome], outcome: Future[Outcome]) -> None:
        if ended.cancelled():
            return
        self.pool.idle.append(self)
        error = ended.exception()
        if isinstance(error, BrokenProcessPool):
            outcome.set_result(Outcome(job, error="its worker process was killed (out of memory?)"))
        elif error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(ended.result())


@contextmanager
def _visible(device: str | None) -> Iterator[None]:
    """What starts within this context sees this GPU alone, from its first moment on.

    A process cannot choose for itself later: importing some packages already asks for the GPUs.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        yield
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        elif device is not None:
            del os.environ["CUDA_VISIBLE_DEVICES"]


def _start_worker(threads: int) -> None:
    """Use a share of the CPU, and do not outlive the process that hands out the jobs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
