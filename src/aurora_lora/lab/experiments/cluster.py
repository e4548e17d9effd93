"""Jobs on a cluster, through submitit."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArgumentError, UserError, one_line
from ...extras import extra
from .jobs import Job, Outcome, run_job, run_until_asked


class Cluster:
    """Each job a job of the cluster, through submitit, on one GPU unless the options say otherwise.

    Args:
        slots: how many are queued or running at a time.
        options: submitit's parameters, such as `slurm_partition=gpu` or `timeout_min=120`; `cluster=local` runs them
            here, which shows that a list works before it waits in a queue.
        minutes: the time to ask for, for a job, where the options name none.
    """

    def __init__(self, slots: int, options: dict[str, str], minutes: Callable[[Job], int]) -> None:
        with extra("slurm"):
            import submitit
        self.slots = slots
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

    def open(self) -> AbstractContextManager[Callable[[Job], Any]]:
        return nullcontext(self._submit)

    def _submit(self, job: Job) -> _ClusterJob | _NotSubmitted:
        try:
            wanted = {} if self.minutes is None else {"timeout_min": self.minutes(job)}
        except UserError as error:  # its run would say the same, after it has waited in a queue
            return _NotSubmitted(Outcome(job, error=str(error)))
        try:
            self.executor.update_parameters(**wanted)
            # a little before its time is up, or where it is preempted, submitit's job gets that signal
            return _ClusterJob(job, self.executor.submit(run_until_asked, run_job, job, self.signal))
        except Exception as error:
            why = f"the cluster did not take it: {one_line(error)[:200]}"
            return _NotSubmitted(Outcome(job, error=why, was_refused=True))


@dataclass(frozen=True, eq=False)
class _NotSubmitted:
    """A job that cannot be run, or that the cluster did not take, such as one more than a user may have there."""

    outcome: Outcome

    def done(self) -> bool:
        return True

    def result(self) -> Outcome:
        return self.outcome


class _ClusterJob:
    """A job of the cluster that was lost (a node went down, time ran out) is an error, not an exception."""

    def __init__(self, job: Job, submitted: Any) -> None:
        self.job, self.submitted = job, submitted

    def done(self) -> bool:
        return bool(self.submitted.done())

    def result(self) -> Outcome:
        try:
            outcome: Outcome = self.submitted.result()
        except Exception as error:
            reason = one_line(error)[:200]
            return Outcome(self.job, error=f"the cluster's job {self.submitted.job_id} was lost: {reason}")
        return outcome


_GPUS = ("gpus_per_node", "gpus_per_task", "num_gpus", "gres")
"""The parameters that ask for GPUs, and say how many."""
_LISTS = ("setup", "teardown", "srun_args")
_TRUE_OR_FALSE = ("stderr_to_stdout", "use_srun", "exclusive")


def _value(name: str, text: str) -> Any:
    """The value of a parameter of submitit, which checks the types of some and writes the others as they are."""
    own = name.removeprefix("slurm_")
    if own in _LISTS:
        return [text]
    if own in _TRUE_OR_FALSE and text in ("true", "false"):
        return True if text == "true" else None if own == "exclusive" else False  # None is left out
    if own != "name" and re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    return float(text) if own == "mem_gb" and re.fullmatch(r"[0-9]+\.[0-9]+", text) else text
