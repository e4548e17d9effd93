"""Runs as jobs of a cluster: what Slurm is asked for, and what becomes of it, with stand-ins for its commands."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Timer

import pytest
import tiny
from typer.testing import CliRunner

from aurora_lora import cli, termination
from aurora_lora.errors import ArgumentError, UserError
from aurora_lora.lab.experiments import cluster, engines
from aurora_lora.lab.experiments.engines import make_engine, outcomes
from aurora_lora.lab.experiments.jobs import Job, Outcome, run_until_asked
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.suite import Suite

STAND_INS = {
    "sbatch": 'cp "$1" "{folder}/job.sh"; echo "Submitted batch job 7"; test "$HELD" && exit\n'
    '(SLURM_JOB_ID=7 bash "$1"; touch "{folder}/ended") > "{folder}/out.txt" 2>&1 < /dev/null &',
    "srun": 'while [ "${{1#--}}" != "$1" ]; do case "$1" in *=*|--unbuffered) shift;; *) shift 2;; esac; done\n'
    'PYTHONPATH="{folder}:$PYTHONPATH" SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 "$@"',
    "sacct": 'echo "JobID|State|NodeList"; echo "7|$(test -e "{folder}/ended" && echo COMPLETED || echo RUNNING)|here"',
}
"""What Slurm's commands do, as far as submitit needs them: one job at a time, begun at once."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster's commands on the PATH, whose jobs know the tiny tasks; gives where the last job's script is."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    known = f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r}); import tiny; tiny.register()\n"
    (folder / "sitecustomize.py").write_text(known)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[2]), prepend=os.pathsep)
    return folder / "job.sh"


def parameters(script: Path) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "#SBATCH" in line]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_job_of_slurm_asks_for_a_gpu_and_the_time_of_the_plan(
    tiny_suite: Callable[..., Suite], slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_suite()
    monkeypatch.chdir(tmp_path)
    run = ["reproduce", "tiny", "--only", "lora-sentiment", "--seeds", "0", "--launcher", "slurm"]
    done = CliRunner().invoke(cli.app, [*run, "--set", "slurm_partition=fast"])
    assert done.exit_code == 0, done.output + (slurm.parent / "out.txt").read_text()
    assert "lora-sentiment, seed 0: validation accuracy" in done.stderr
    asked = parameters(slurm)
    assert (asked["gpus-per-node"], asked["partition"], asked["time"]) == ("1", "fast", "30")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"time": "1234", "gpus-per-node": "1"}),
        ({"timeout_min": "7", "slurm_gres": "gpu:a100:1"}, {"time": "7", "gres": "gpu:a100:1"}),
        ({"gpus_per_node": "0", "slurm_mem": "9GB"}, {"time": "1234", "gpus-per-node": "0", "mem": "9GB"}),
        (
            {"slurm_mem_per_gpu": "40GB", "name": "mine"},
            {"time": "1234", "gpus-per-node": "1", "mem-per-gpu": "40GB", "job-name": "mine"},
        ),
        ({"mem_gb": "64.5", "gpus_per_node": "1"}, {"time": "1234", "gpus-per-node": "1", "mem": "66048MB"}),
    ],
)
def test_what_is_given_counts(
    options: dict[str, str],
    asked: dict[str, str],
    tiny_suite: Callable[..., Suite],
    slurm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HELD", "1")
    tiny_suite()
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    engine = make_engine("slurm", 1, {"logs": str(tmp_path / "logs"), **options}, lambda job: 1234)
    with engine.open() as submit:
        submit(next(iter(todo.jobs.values())))
    found = parameters(slurm)
    names = ("time", "gpus-per-node", "gres", "mem", "mem-per-gpu")
    there = {name: found[name] for name in names if name in found}
    assert {**there, **{name: found[name] for name in asked}} == asked


def test_lists_and_truth_values_of_submitit(slurm: Path, tmp_path: Path) -> None:
    options = {"slurm_setup": "module load cuda", "slurm_srun_args": "--mpi=pmi2", "slurm_use_srun": "false"}
    options |= {"slurm_comment": "2.10", "name": "2024"}
    engine = make_engine("slurm", 1, {"logs": str(tmp_path / "logs"), **options})
    given = engine.executor._executor.parameters  # type: ignore[attr-defined]
    assert given["setup"] == ["module load cuda"]
    assert given["srun_args"] == ["--mpi=pmi2"]
    assert given["use_srun"] is False
    assert (given["comment"], given["job_name"]) == ("2.10", "2024")


@pytest.mark.parametrize("name", ["timeout_min", "cpus_per_task", "mem_gb"])
def test_a_value_of_another_type_is_a_users_mistake(slurm: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=name):
        make_engine("slurm", 1, {"logs": str(tmp_path / "logs"), name: "1h"})


@pytest.mark.parametrize(("cluster", "slots"), [("local", 1), ("debug", 1), ("slurm", 64)])
def test_this_machine_gets_one_run_at_a_time(slurm: Path, tmp_path: Path, cluster: str, slots: int) -> None:
    options = {"cluster": cluster, "logs": str(tmp_path / "logs")}
    assert make_engine("slurm", None, options).slots == slots
    assert make_engine("slurm", 3, options).slots == 3


def test_what_the_cluster_does_not_take_is_the_failure_of_its_run_alone(
    tiny_suite: Callable[..., Suite], slurm: Path, tmp_path: Path
) -> None:
    (slurm.parent / "sbatch").write_text("#!/bin/bash\necho 'invalid partition specified: fsat' >&2; exit 1\n")
    tiny_suite()
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    engine = make_engine("slurm", 2, {"logs": str(tmp_path / "logs"), "slurm_partition": "fsat"})
    found = list(outcomes(list(todo.jobs.values())[:3], engine))
    assert len(found) == 3
    for outcome in found:
        assert str(outcome.error).startswith("the cluster did not take it: ")


def test_a_job_whose_time_is_up_ends_as_by_sigterm(
    tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitit tells it by a signal of its own."""
    pytest.importorskip("submitit")
    tiny_suite()
    job = next(iter(prepare("tiny", "packaged", tmp_path / "runs").jobs.values()))
    done = []

    def run(job: Job) -> Outcome:
        with termination.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            signal.getsignal(signal.SIGUSR2)  # the handler runs before the next line
            done.append(termination.asked())
            termination.stop()
        raise AssertionError

    monkeypatch.setattr(cluster, "run_job", run)
    before = signal.getsignal(signal.SIGUSR2)
    engine = make_engine("slurm", None, {"cluster": "debug", "logs": str(tmp_path / "logs"), "timeout_min": "5"})
    with engine.open() as submit:
        outcome = submit(job).result()
    assert (done, outcome.error) == ([True], "its process was told to end; it goes on from its last checkpoint")
    assert signal.getsignal(signal.SIGUSR2) is before


def test_what_the_cluster_has_no_room_for_waits_for_a_job_to_end(
    tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a user may have fewer jobs there than `--jobs`."""
    tiny_suite()
    jobs = list(prepare("tiny", "packaged", tmp_path / "runs").jobs.values())[:4]
    running: list[Future[Outcome]] = []

    class Full:
        slots = 4

        def open(self) -> AbstractContextManager[Callable[[Job], Future[Outcome]]]:
            return nullcontext(self.submit)

        def submit(self, job: Job) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            if running and not running[-1].done():
                future.set_result(Outcome(job, error="full", was_refused=True))
            else:
                running.append(future)
                Timer(0.2, lambda: future.set_result(Outcome(job, error="done"))).start()
            return future

    monkeypatch.setattr(engines, "POLL_SECONDS", 0.01)
    assert [outcome.error for outcome in outcomes(jobs, Full())] == ["done"] * 4


def test_what_the_cluster_has_no_room_for_is_not_drawn(
    tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job that is drawn may be one of a budget, and is of the values that are best after those that have ended."""
    tiny_suite()
    job = next(iter(prepare("tiny", "packaged", tmp_path / "runs").jobs.values()))
    running: list[Future[Outcome]] = []
    drawn: list[int] = []

    class RoomForTwo:
        slots = 8

        def open(self) -> AbstractContextManager[Callable[[Job], Future[Outcome]]]:
            return nullcontext(self.submit)

        def submit(self, job: Job) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            if sum(not one.done() for one in running) == 2:
                future.set_result(Outcome(job, error="full", was_refused=True))
            else:
                running.append(future)
                Timer(0.05, lambda: future.set_result(Outcome(job, error="done"))).start()
            return future

    def draw() -> Iterator[Job]:
        for number in range(12):
            drawn.append(number)
            yield Job(str(number), job.recipe, tmp_path / str(number))

    monkeypatch.setattr(engines, "POLL_SECONDS", 0.01)
    ended: list[str] = []
    for outcome in outcomes(draw(), RoomForTwo()):
        assert outcome.error == "done"
        ended.append(outcome.job.name)
        assert len(drawn) <= len(ended) + 2 + 1  # those that run, and one that was refused
    assert sorted(ended, key=int) == [str(number) for number in range(12)]


def test_what_cannot_be_planned_is_no_fault_of_the_cluster(
    tiny_suite: Callable[..., Suite], slurm: Path, tmp_path: Path
) -> None:
    tiny_suite()
    jobs = list(prepare("tiny", "packaged", tmp_path / "runs").jobs.values())[:2]

    def minutes(job: Job) -> int:
        raise UserError("target_modules: the model has no 'qury'")

    engine = make_engine("slurm", 2, {"logs": str(tmp_path / "logs")}, minutes)
    found = list(outcomes(jobs, engine))
    assert [(one.error, one.was_refused) for one in found] == [("target_modules: the model has no 'qury'", False)] * 2
    assert not slurm.exists()


def test_sigterm_to_a_command_is_its_own(tiny_suite: Callable[..., Suite], tmp_path: Path) -> None:
    """Where a job runs in the command's process, as submitit's debug cluster does."""
    tiny_suite()
    job = next(iter(prepare("tiny", "packaged", tmp_path / "runs").jobs.values()))

    def run(job: Job) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.getsignal(signal.SIGTERM)  # the handler runs before the next line
        raise AssertionError

    with termination.watched(), pytest.raises(termination.TerminatedError):
        run_until_asked(run, job, signal.SIGUSR2)


def test_what_deals_with_another_signal_does_so_after_the_checkpoint(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    """As submitit does, which may queue a job that was preempted again."""
    tiny_suite()
    job = next(iter(prepare("tiny", "packaged", tmp_path / "runs").jobs.values()))
    events: list[str] = []

    def run(job: Job) -> Outcome:
        with termination.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            signal.getsignal(signal.SIGUSR2)  # the handler runs before the next line
            events.append("checkpoint")
            termination.stop()
        raise AssertionError

    before = signal.signal(signal.SIGUSR2, lambda number, frame: events.append(signal.Signals(number).name))
    try:
        assert run_until_asked(run, job, signal.SIGUSR2).error is not None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert events == ["checkpoint", "SIGUSR2"]
