"""Runs in processes of their own and as jobs of a cluster, with stand-ins for Slurm's commands."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from aurora_lora import cli, termination
from aurora_lora.errors import DIVERGED, ArgumentError, UserError
from aurora_lora.lab.experiments import jobs as module
from aurora_lora.lab.experiments.jobs import Done, Job, Outcome, Processes, make_engine, outcomes, run_until_asked
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
    engine.start(next(iter(todo.jobs.values())))
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


def test_what_cannot_be_planned_is_no_fault_of_the_cluster(
    tiny_suite: Callable[..., Suite], slurm: Path, tmp_path: Path
) -> None:
    tiny_suite()
    jobs = list(prepare("tiny", "packaged", tmp_path / "runs").jobs.values())[:2]

    def minutes(job: Job) -> int:
        raise UserError("target_modules: the model has no 'qury'")

    engine = make_engine("slurm", 2, {"logs": str(tmp_path / "logs")}, minutes)
    found = list(outcomes(jobs, engine))
    assert [one.error for one in found] == ["target_modules: the model has no 'qury'"] * 2
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
        run_until_asked(job, signal.SIGUSR2, run=run)


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
        assert run_until_asked(job, signal.SIGUSR2, run=run).error is not None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert events == ["checkpoint", "SIGUSR2"]


# ---------------------------------------------------------------- processes


@pytest.fixture
def jobs(tiny_suite: Callable[..., Suite], tmp_path: Path) -> list[Job]:
    tiny_suite()
    return list(prepare("tiny", "packaged", tmp_path / "runs").jobs.values())


def script(tmp_path: Path, text: str) -> list[str]:
    """A command that runs a program in the place of `aurora`."""
    (tmp_path / "stand_in.py").write_text(text)
    return [sys.executable, str(tmp_path / "stand_in.py")]


def test_a_run_in_a_process_of_its_own(jobs: list[Job]) -> None:
    """It does not know the tiny tasks: its error comes back, by the command's own line."""
    (outcome,) = outcomes(jobs[:1], make_engine("local", 2))
    assert "tiny-" in str(outcome.error)
    assert str(outcome.error).startswith("exit code 2: ")


def test_each_process_has_a_device_and_the_recipe_and_dies_alone(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
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
    engine = Processes(2, ["3", "5"], script(tmp_path, program))
    found = {one.job.name: str(one.error) for one in outcomes(jobs, engine)}
    assert len(found) == 8
    killed = {error for name, error in found.items() if name.startswith("lora")}
    assert killed == {"its process was killed (out of memory?)"}
    for name, error in found.items():
        if name.startswith("aurora"):
            assert error in {f"exit code 2: {device} name: tiny-{name.split(',')[0]} train --output" for device in "35"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


LAUNCHER = "Traceback (most recent call last):\n  main()\nsubprocess.CalledProcessError: exit status 2.\n"
TORCHRUN = (
    "E1130 19:38:11.639000 1818 /x/torch/distributed/elastic/api.py:1002] failed (exitcode: 2)\n"
    "Traceback (most recent call last):\n  main()\ntorch.distributed.elastic.ChildFailedError:\n=====\n"
)


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (f"aurora: {DIVERGED}: at step 3\naurora: {DIVERGED}: at step 4\nE0 launcher", f"{DIVERGED}: at step 3"),
        (f"MemoryError: 4 GB\n{LAUNCHER}", "MemoryError: 4 GB"),
        (f"MemoryError: 4 GB\n{TORCHRUN}", "MemoryError: 4 GB"),
        ("", "it printed nothing"),
    ],
)
def test_why_a_run_failed_is_said_by_the_run(jobs: list[Job], tmp_path: Path, printed: str, said: str) -> None:
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "log.txt").write_text(f"of an earlier call: {DIVERGED}\n")
    engine = Processes(1, [], script(tmp_path, f"import sys; print({printed!r}); sys.exit(1)"))
    (outcome,) = outcomes(jobs[:1], engine)
    assert outcome.error == f"exit code 1: {said}"


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
            list(outcomes(jobs[:2], Processes(2, [], script(tmp_path, program))))
    finally:
        signal.signal(signal.SIGINT, before)
    assert all((job.folder / "checkpoint").exists() for job in jobs[:2])


def test_what_there_is_no_room_for_waits_and_no_more_is_drawn(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user may have fewer jobs on a cluster than `--jobs`; each job that is drawn may be one of a budget."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    running: list[Any] = []
    drawn: list[str] = []

    class Later:
        def __init__(self, job: Job) -> None:
            self.job, self.looks = job, 3

        def outcome(self) -> Outcome | None:
            self.looks -= 1
            if self.looks:
                return None
            running.remove(self)
            return Outcome(self.job, error="done")

        def stop(self) -> None: ...

    class RoomForTwo:
        slots = 8

        def start(self, job: Job) -> Later | None:
            if len(running) == 2:
                return None
            running.append(Later(job))
            return running[-1]

    def draw() -> Iterator[Job]:
        for job in jobs:
            drawn.append(job.name)
            yield job

    ended = []
    for outcome in outcomes(draw(), RoomForTwo()):
        assert outcome.error == "done"
        ended.append(outcome.job.name)
        assert len(drawn) <= len(ended) + 2 + 1  # those that run, and one that was refused
    assert sorted(ended) == sorted(job.name for job in jobs)


def test_submitit_runs_a_job(jobs: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine = make_engine("slurm", None, {"cluster": "debug", "logs": str(tmp_path / "logs"), "timeout_min": "5"})
    (outcome,) = outcomes(jobs[:1], engine)
    assert outcome.result is not None
    with pytest.raises(UserError, match=r"^`launcher` slurm: there is no Slurm here"):
        make_engine("slurm", 4)
    with pytest.raises(UserError, match=r"^`options`: "):
        make_engine("slurm", 4, {"cluster": "local", "no_such_parameter": "1"})


def test_what_runs_need_is_prepared_before_the_first(jobs: list[Job]) -> None:
    events: list[str] = []

    def run(job: Job) -> Outcome:
        events.append(job.name)
        return Outcome(job, error="x")

    engine = module.InProcess(run, lambda: events.append("prepared"))
    assert isinstance(engine.start(jobs[0]), Done)
    engine.start(jobs[1])
    assert events == ["prepared", jobs[0].name, jobs[1].name]


@pytest.mark.parametrize(
    ("launcher", "number", "options", "message"),
    [
        ("lokal", None, {}, "`launcher`: 'lokal' is an unknown launcher; did you mean 'local'?"),
        ("local", 0, {}, "`jobs` must be at least 1, got 0"),
        ("local", 1, {"a": "b"}, "`options` is for `launcher` slurm, not for local"),
        ("accelerate", 2, {}, "`jobs`: with `launcher` accelerate, one run at a time has all devices (allowed: 1)"),
    ],
)
def test_engine_errors(launcher: str, number: int | None, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_engine(launcher, number, options)
    assert str(error.value) == message
