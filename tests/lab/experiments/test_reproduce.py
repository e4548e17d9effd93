"""Whole reproductions on a tiny suite: runs, failures, what is taken from before, and the table."""

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import DIVERGED, UserError
from aurora_lora.lab.experiments.engines import InProcess, Workers, make_engine, outcomes
from aurora_lora.lab.experiments.jobs import Job, Outcome, launch_job, run_job
from aurora_lora.lab.experiments.reproduce import Reproduction, prepare, run
from aurora_lora.lab.experiments.suite import Suite
from aurora_lora.lab.report.paper_comparison import compare, markdown, notes, tables
from aurora_lora.train import publish, recipe_files
from make.tables import reproduced_table

MakeSuite = Callable[..., Suite]


@pytest.fixture
def todo(tiny_suite: MakeSuite, tmp_path: Path) -> Reproduction:
    tiny_suite()
    return prepare("tiny", "packaged", tmp_path / "runs", only=["sentiment"])


def test_a_reproduction_and_its_table(todo: Reproduction) -> None:
    seen: list[Outcome] = []
    tally = run(todo, make_engine("local", 1), seen.append)
    assert len(tally.finished) == len(seen) == 4
    assert not tally.failed
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    lora, static, calibrated = compared
    for one in compared:
        scores = [
            100 * todo.jobs[one.recipe, seed].result()["metric"]["by_form"][one.form]["accuracy"] for seed in (0, 1)
        ]
        assert one.scores == tuple(scores)
        assert one.ours == one.median == one.mean == sum(scores) / 2
        assert one.missing == 0
        assert one.spread == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert (lora.paper, lora.quoted, lora.paper_params) == (80, True, "0.3K")
    assert lora.difference == pytest.approx(lora.ours - 80)
    assert (calibrated.paper, calibrated.difference) == (None, None)
    assert static.params == todo.jobs["aurora-sentiment", 0].result()["params"]["adapter"]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(todo.suite, compared):
        console.print(table)
    text = console.export_text()
    assert "80.0*" in text
    assert f"{lora.difference:+.1f}" in text
    assert max(map(len, text.splitlines())) <= 80
    page = markdown(todo.suite, compared)
    assert f"| LoRA | 0.3K | {lora.params} | Sentiment | 80.0* | {lora.ours:.1f} |" in page
    assert page.splitlines()[-3:] == ["\\* The paper takes these numbers from earlier work.", "", "Tiny data."]
    assert notes(todo.suite, [calibrated]) == ["Tiny data."]


def test_averages(tiny_suite: MakeSuite, tmp_path: Path) -> None:
    """Over the columns, of the medians over the seeds; only where all columns are there."""
    rows = [{"name": "LoRA", "recipe": "lora-{column}", "scores": {"sentiment": 80}, "average": 70}]
    tiny_suite(groups=[{"name": "Tiny", "rows": rows}], average="Avg.")
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    made = {
        (recipe, seed): {
            "metric": {"by_form": {"merged": {"accuracy": 0.5 + 0.1 * seed, "pearson": 0.25}}},
            "params": {"adapter": 5},
        }
        for recipe, seed in todo.jobs
    }
    *_, average = compare(todo.suite, todo.cells, todo.seeds, made)
    assert (average.column, average.paper) == ("Avg.", 70)
    assert average.ours == pytest.approx((55 + 25) / 2)
    del made["lora-rating", 0], made["lora-rating", 1]
    *_, average = compare(todo.suite, todo.cells, todo.seeds, made)
    assert average.ours is None
    assert len(compare(todo.suite, todo.cells[:1], todo.seeds, made)) == 1


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_the_statistic_of_a_suite(tiny_suite: MakeSuite, tmp_path: Path, statistic: str) -> None:
    """Of three seeds the mean is not the median; over the columns it is the mean in any case."""
    columns = [{"name": name, "label": name, "metric": name} for name in ("accuracy", "pearson", "matthews")]
    groups = [{"name": "Tiny", "rows": [{"name": "LoRA", "recipe": "lora-sentiment"}]}]
    tiny_suite(columns=columns, groups=groups, seeds=(0, 1, 2), statistic=statistic, average="Avg.")
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    scores = {"accuracy": (0.5, 0.6, 0.9), "pearson": (0.1, 0.2, 0.6), "matthews": (0.0, 0.3, 0.3)}
    made = {
        (recipe, seed): {
            "metric": {"by_form": {"merged": {name: some[seed] for name, some in scores.items()}}},
            "params": {"adapter": 5},
        }
        for recipe, seed in todo.jobs
    }
    *found, average = compare(todo.suite, todo.cells, todo.seeds, made)
    medians, means = [60, 20, 30], [200 / 3, 30, 20]
    assert [one.median for one in found] == pytest.approx(medians)
    assert [one.mean for one in found] == pytest.approx(means)
    assert [one.ours for one in found] == pytest.approx(medians if statistic == "median" else means)
    assert average.ours == pytest.approx((110 if statistic == "median" else 350 / 3) / 3)


def test_both_ends_of_the_parameters_where_runs_differ(tiny_suite: MakeSuite, tmp_path: Path) -> None:
    """LoRA-drop keeps other layers on other data and from other seeds."""
    rows = [{"name": "LoRA", "recipe": "lora-{column}"}]
    tiny_suite(groups=[{"name": "Tiny", "rows": rows}], average="Avg.")
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    made = {
        (recipe, seed): {
            "metric": {"by_form": {"merged": {"accuracy": 0.5, "pearson": 0.25}}},
            "params": {"adapter": 2000 + 10 * seed if recipe == "lora-sentiment" else 1500},
        }
        for recipe, seed in todo.jobs
    }
    compared = compare(todo.suite, todo.cells, todo.seeds, made)
    assert [(one.params, one.most_params) for one in compared] == [(2000, 2010), (1500, 1500), (1500, 2010)]
    page = markdown(todo.suite, compared)
    for shown in ("|  | 2,000 to 2,010 | Sentiment |", "|  | 1,500 | Rating |", "|  | 1,500 to 2,010 | Avg. |"):
        assert shown in page
    record = {"cells": [one.to_dict() for one in compared], "seeds": todo.seeds, "statistic": "median"}
    assert "| LoRA | 1,500 to 2,010 |" in reproduced_table(record)
    for cell in record["cells"]:  # as earlier versions wrote it
        del cell["most_params"]
    assert "| LoRA | 1,500 to 2,000 |" in reproduced_table(record)
    assert f"standard deviation over {len(todo.seeds)} seeds" in reproduced_table(record)
    assert reproduced_table({**record, "seeds": [0]}).endswith("One seed; the head is not among the parameters.")


def test_finished_runs_are_taken_as_they_are(todo: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(iter(todo.jobs.values()))
    assert first.status() == "to do"
    assert run_job(first).result is not None
    assert first.status() == "finished"
    ran: list[str] = []

    def note(job: Job) -> Outcome:
        ran.append(job.name)
        return Outcome(job, error="not run in this test")

    tally = run(todo, InProcess(note))
    assert first.name not in ran
    assert len(ran) == 3
    assert [one.job.name for one in tally.finished] == [first.name]
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    assert [one.missing for one in compared] == [1 if one.scores else 2 for one in compared]


def test_a_failure_does_not_stop_the_others(todo: Reproduction) -> None:
    bad = todo.jobs["lora-sentiment", 0]
    bad.folder.mkdir(parents=True)
    base = bad.recipe.base.model_copy(update={"name": str(bad.folder)})  # a folder without a model
    broken = bad.recipe.model_copy(update={"base": base})
    todo.jobs["lora-sentiment", 0] = Job(bad.name, broken, bad.folder)
    tally = run(todo, make_engine("local", None))
    assert [one.job.name for one in tally.failed] == [bad.name]
    assert tally.failed[0].error.startswith(f"model: '{bad.folder}' cannot be loaded")
    assert "Traceback" in (bad.folder / "log.txt").read_text()
    assert len(tally.finished) == 3
    outcome = run_job(bad)  # what it printed does not keep the folder from the corrected recipe
    assert outcome.result is not None, outcome.error


def test_accelerate_is_given_the_recipe_that_is_asked_for(todo: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a run which made nothing; and nothing of a run that made something is overwritten."""
    job = todo.jobs["lora-sentiment", 0]
    other = Job(job.name, job.recipe.model_copy(update={"seed": 7}), job.folder)
    launched: list[dict[str, Any]] = []

    def call(command: list[str], output: object) -> int:
        launched.append(recipe_files.read(Path(command[command.index("train") + 1])))
        return 2

    monkeypatch.setattr("aurora_lora.termination.call", call)
    assert "exit code 2" in str(launch_job(other).error)
    assert "exit code 2" in str(launch_job(job).error)
    assert [values["seed"] for values in launched] == [7, job.recipe.seed]
    (job.folder / "adapter").mkdir()
    assert "another recipe" in str(launch_job(other).error)
    assert recipe_files.read(job.folder / "recipe.yaml")["seed"] == job.recipe.seed


LAUNCHER = """Traceback (most recent call last):
  File "accelerate/commands/launch.py", line 1423, in <module>
    main()
subprocess.CalledProcessError: Command '['python', '-m', 'aurora_lora.cli']' returned non-zero exit status 2.
"""
"""What `accelerate launch` prints of one process that failed."""
TORCHRUN = """E1130 19:38:11.639000 1818 /x/torch/distributed/elastic/api.py:1002] failed (exitcode: 2)
Traceback (most recent call last):
  File "accelerate/commands/launch.py", line 1423, in <module>
    main()
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
aurora_lora.cli FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
============================================================
"""
"""And of several."""
OWN = 'Traceback (most recent call last):\n  File "a.py", line 1, in b\nMemoryError: 4 GB\n'


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (f"aurora: {DIVERGED}: the loss is nan at step 3\n{LAUNCHER}", f"{DIVERGED}: the loss is nan at step 3"),
        (f"aurora: {DIVERGED}: at step 3\naurora: {DIVERGED}: at step 4\n{TORCHRUN}", f"{DIVERGED}: at step 3"),
        (f"{OWN}{LAUNCHER}", "MemoryError: 4 GB"),
        (f"{OWN}\n{TORCHRUN}", "MemoryError: 4 GB"),
        (OWN, "MemoryError: 4 GB"),
        ("Traceback (most recent call last):\nValueError: only one of --cpu\n", "ValueError: only one of --cpu"),
        (LAUNCHER, LAUNCHER.splitlines()[-1]),
        ("", "it printed nothing"),
    ],
)
def test_why_a_launched_run_failed_is_said_by_the_run_not_its_launcher(
    todo: Reproduction, monkeypatch: pytest.MonkeyPatch, printed: str, said: str
) -> None:
    job = next(iter(todo.jobs.values()))
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text(f"of an earlier call: {DIVERGED}\n")

    def call(command: list[str], output: IO[str]) -> int:
        output.write(printed)
        output.flush()
        return 1

    monkeypatch.setattr("aurora_lora.termination.call", call)
    assert launch_job(job).error == f"exit code 1: {said}"


def test_another_recipes_run_is_an_error_not_a_result(todo: Reproduction) -> None:
    job = todo.jobs["lora-sentiment", 0]
    assert run_job(job).result is not None
    other = Job(job.name, job.recipe.model_copy(update={"seed": 7}), job.folder)
    with pytest.raises(UserError, match=r"holds the run of another recipe; they differ in seed"):
        other.result()
    (outcome,) = outcomes([other], InProcess(run_job))
    assert "another recipe" in outcome.error
    todo.jobs["lora-sentiment", 0] = other
    assert (other.status(), todo.results()) == ("started", {}), "the other runs of the table are not stopped by it"


def test_a_run_that_another_process_is_at_is_waited_for(todo: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not submitted again before the other process is gone, and the other's log is left alone."""
    job, other = list(todo.jobs.values())[:2]
    job.folder.mkdir(parents=True)
    events: list[str] = []
    lock = publish.lock(job.folder)
    lock.__enter__()

    def pause(seconds: float) -> None:
        events.append("pause")
        if events.count("pause") == 3:
            lock.__exit__(None, None, None)

    def note(one: Job) -> Outcome:
        events.append(one.name)
        return run_job(one)

    monkeypatch.setattr("aurora_lora.lab.experiments.engines.time", SimpleNamespace(sleep=pause))
    found = []
    for outcome in outcomes([job, other], InProcess(note)):
        found.append(outcome)
        assert "Traceback" not in (job.folder / "log.txt").read_text()
    assert all(outcome.result is not None for outcome in found)
    assert events == [job.name, other.name, "pause", "pause", "pause", job.name]


def test_a_run_that_another_process_has_finished_is_not_submitted(
    todo: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(iter(todo.jobs.values()))
    submitted: list[str] = []

    def elsewhere(one: Job) -> Outcome:
        submitted.append(one.name)
        assert run_job(one).result is not None  # as the other process does meanwhile
        return Outcome(one)

    monkeypatch.setattr("aurora_lora.lab.experiments.engines.POLL_SECONDS", 0.01)
    (outcome,) = outcomes([job], InProcess(elsewhere))
    assert outcome.result is not None
    assert len(submitted) == 1


@pytest.mark.parametrize("locked", ["before", "meanwhile"])
def test_accelerate_leaves_a_run_to_the_process_that_is_at_it(
    todo: Reproduction, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    job = next(iter(todo.jobs.values()))
    job.folder.mkdir(parents=True)
    launched: list[Any] = []
    lock = publish.lock(job.folder)

    def refused(command: list[str], output: object) -> int:
        launched.append(command)
        lock.__enter__()
        return 2

    monkeypatch.setattr("aurora_lora.termination.call", refused)
    if locked == "before":
        lock.__enter__()
    assert launch_job(job).is_elsewhere
    assert len(launched) == (locked == "meanwhile")
    lock.__exit__(None, None, None)


def test_workers(todo: Reproduction) -> None:
    """A worker process does not know the tiny tasks: its error comes back."""
    (outcome,) = outcomes(list(todo.jobs.values())[:1], make_engine("local", 2))
    assert "tiny-sentiment" in outcome.error


@pytest.mark.slow
def test_a_killed_worker_is_the_failure_of_its_run_alone(
    todo: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process goes on, and the next run gets a new one on the same device."""
    (tmp_path / "killed_worker.py").write_text(
        "import os, signal, time\n"
        "from aurora_lora.lab.experiments.jobs import Outcome\n"
        "def run(job):\n"
        "    if job.name.startswith('lora'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(1)\n"
        "    return Outcome(job, error=os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("aurora_lora.lab.experiments.engines.run_job", importlib.import_module("killed_worker").run)
    found = {one.job.name: one.error for one in outcomes(todo.jobs.values(), Workers(2, ["3", "5"]))}
    killed = "its worker process was killed (out of memory?)"
    assert [found[f"lora-sentiment, seed {seed}"] for seed in (0, 1)] == [killed, killed]
    assert {found[f"aurora-sentiment, seed {seed}"] for seed in (0, 1)} <= {"3", "5"}


@pytest.mark.slow
def test_a_worker_ends_after_a_checkpoint(todo: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SIGTERM comes to it alone, which is the failure of its run, and where the command is interrupted."""
    (tmp_path / "patient_run.py").write_text(
        "import os, pathlib, signal, time\n"
        "from aurora_lora import termination\n"
        "def run(job):\n"
        "    job.folder.mkdir(parents=True)\n"
        "    with termination.deferred():\n"
        "        (job.folder / 'begun').write_text(str(os.getpid()))\n"
        "        if job.name.startswith('lora'):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        while not termination.asked():\n"
        "            time.sleep(0.01)\n"
        "        (job.folder / 'checkpoint').write_text('')\n"
        "        termination.stop()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("aurora_lora.lab.experiments.engines.run_job", importlib.import_module("patient_run").run)
    alone, other = todo.jobs["lora-sentiment", 0], todo.jobs["aurora-sentiment", 0]

    def wait_for(file: Path) -> None:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.exists()

    def interrupted() -> None:
        with Workers(1, []).open() as submit:
            error = submit(alone).result().error
            assert error == "its process was told to end; it goes on from its last checkpoint"
            assert (alone.folder / "checkpoint").exists()
            submit(other)
            wait_for(other.folder / "begun")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    wait_for(other.folder / "checkpoint")
    process = int((other.folder / "begun").read_text())
    psutil.wait_procs([psutil.Process(process)] if psutil.pid_exists(process) else [], timeout=30)
    assert not psutil.pid_exists(process)


@pytest.mark.slow
def test_workers_have_their_device_before_anything_is_imported(
    todo: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some packages ask for the GPUs when they are imported, and a choice after that is ignored."""
    (tmp_path / "sitecustomize.py").write_text("import os\ndevice = os.environ.get('CUDA_VISIBLE_DEVICES')\n")
    (tmp_path / "early_device.py").write_text(
        "from aurora_lora.lab.experiments.jobs import Outcome\n"
        "def run(job):\n"
        "    import sitecustomize, time\n"
        "    time.sleep(1)\n"
        "    return Outcome(job, error=str(sitecustomize.device))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("aurora_lora.lab.experiments.engines.run_job", importlib.import_module("early_device").run)
    assert {one.error for one in outcomes(todo.jobs.values(), Workers(2, ["3", "5"]))} == {"3", "5"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_cluster(todo: Reproduction, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine = make_engine("slurm", None, {"cluster": "debug", "logs": str(tmp_path / "logs"), "timeout_min": "5"})
    (outcome,) = outcomes(list(todo.jobs.values())[:1], engine)
    assert outcome.result["status"] == "finished"
    with pytest.raises(UserError, match=r"^`launcher` slurm: there is no Slurm here"):
        make_engine("slurm", 4)
    with pytest.raises(UserError, match=r"^`options`: "):
        make_engine("slurm", 4, {"cluster": "local", "no_such_parameter": "1"})


@pytest.mark.parametrize(
    ("launcher", "jobs", "options", "message"),
    [
        ("lokal", None, {}, "`launcher`: 'lokal' is an unknown launcher; did you mean 'local'?"),
        ("local", 0, {}, "`jobs` must be at least 1, got 0"),
        ("local", 1, {"a": "b"}, "`options` is for `launcher` slurm, not for local"),
        ("accelerate", 2, {}, "`jobs`: with `launcher` accelerate, one run at a time has all the devices (allowed: 1)"),
    ],
)
def test_engine_errors(launcher: str, jobs: int | None, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_engine(launcher, jobs, options)
    assert str(error.value) == message


# ---------------------------------------------------------------- the command


@pytest.fixture
def aurora(tiny_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    tiny_suite()
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli.app, ["reproduce", "tiny", *map(str, args)])


def test_dry_run(aurora: Callable[..., Any], tmp_path: Path) -> None:
    done = aurora("--dry-run")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    for text in ("aurora-sentiment", "lora-rating", "0/2", "8 runs, 8 of them to do"):
        assert text in done.stdout
    rows = json.loads(aurora("--dry-run", "--json").stdout)
    assert len(rows) == 8
    assert {row["params"]["adapter"] for row in rows if row["method"] == "lora"} == {2 * 2 * 2 * (16 + 16)}
    assert all(row["memory_gb"] > 0 and row["status"] == "to do" for row in rows)
    assert not (tmp_path / "runs").exists()


def test_the_command_prints_and_writes_the_table(aurora: Callable[..., Any], tmp_path: Path) -> None:
    args = ("--only", "lora-sentiment", "--seeds", "3")
    done = aurora(*args)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "packaged" / "tiny"
    record = json.loads((folder / "table.json").read_text())
    assert record["seeds"] == [3]
    assert record["cells"] == json.loads(aurora(*args, "--json").stdout)["cells"]
    (made,) = record["runs"]
    run = json.loads((folder / "lora-sentiment" / "seed3" / "result.json").read_text())
    assert {**made["recipe"], "seed": 3} == run["recipe"]
    assert made["commits"] == {"3": run["git_commit"]}
    assert (folder / "table.md").read_text().startswith("# A tiny table\n\n## Tiny\n")
    assert "lora-sentiment, seed 3: validation accuracy" in done.stderr
    assert "* The paper takes these numbers from earlier work." in done.stdout


def test_a_table_whose_runs_are_all_anothers_is_written(
    aurora: Callable[..., Any], tiny_suite: MakeSuite, tmp_path: Path
) -> None:
    tiny_suite("other")
    tiny_suite(groups=[{"name": "Tiny", "rows": [{"name": "LoRA", "recipe": "other/lora-{column}"}]}])
    done = aurora("--only", "other/lora-sentiment", "--seeds", "0", "training.precision=fp16")  # which fails at once
    assert done.exit_code == 1, done.output
    assert (tmp_path / "runs" / "packaged" / "tiny" / "table.md").exists()


def test_a_failed_run_is_exit_code_1(aurora: Callable[..., Any]) -> None:
    done = aurora("--only", "lora-sentiment", "--seeds", "0,1", "training.precision=fp16")
    assert done.exit_code == 1
    assert "2 failed; the same command tries them again" in done.stderr
    assert "0 of 2" in done.stdout


def test_wrong_arguments_are_exit_code_2(aurora: Callable[..., Any]) -> None:
    assert aurora("--seeds", "one").stderr == "--seeds: 'one' is not a list of whole numbers, such as 0,1,2\n"
    done = aurora("--set", "x")
    assert (done.exit_code, done.stderr) == (2, "--set: 'x' is not of the form key=value\n")


def test_yaml_of_recipes_is_read_back(todo: Reproduction) -> None:
    job = next(iter(todo.jobs.values()))
    assert run_job(job).result is not None
    assert recipe_files.read(job.folder / "recipe.yaml") == job.recipe.resolved()
