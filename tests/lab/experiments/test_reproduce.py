"""Whole reproductions on a tiny suite: runs, failures, what is taken from before, and the table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.jobs import Job, Outcome, in_turn, run_job
from aurora_lora.lab.experiments.reproduce import Reproduction, prepare
from aurora_lora.lab.experiments.suite import Suite
from aurora_lora.lab.report.paper import compare, markdown, notes, tables

MakeSuite = Callable[..., Suite]


@pytest.fixture
def todo(tiny_suite: MakeSuite, tmp_path: Path) -> Reproduction:
    tiny_suite()
    return prepare("tiny", "packaged", tmp_path / "runs", only=["sentiment"])


def test_a_reproduction_and_its_table(todo: Reproduction) -> None:
    assert [outcome.error for outcome in in_turn(todo.jobs.values())] == [None] * 4
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    lora, static, calibrated = compared
    for one in compared:
        scores = [
            100 * todo.jobs[one["recipe"], seed].result()["metric"]["by_form"][one["form"]]["accuracy"]
            for seed in (0, 1)
        ]
        assert one["scores"] == scores
        assert one["ours"] == sum(scores) / 2
        assert one["missing"] == 0
        assert one["spread"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert (lora["paper"], lora["quoted"], lora["paper_params"]) == (80, True, "0.3K")
    assert lora["difference"] == pytest.approx(lora["ours"] - 80)
    assert (calibrated["paper"], calibrated["difference"]) == (None, None)
    assert static["params"] == todo.jobs["aurora-sentiment", 0].result()["params"]["adapter"]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(compared, todo.suite.statistic):
        console.print(table)
    text = console.export_text()
    assert "80.0*" in text
    assert f"{lora['difference']:+.1f}" in text
    assert max(map(len, text.splitlines())) <= 80
    page = markdown(todo.suite, compared)
    assert f"| LoRA | 0.3K | {lora['params']} | Sentiment | 80.0* | {lora['ours']:.1f} |" in page
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
    assert (average["column"], average["paper"]) == ("Avg.", 70)
    assert average["ours"] == pytest.approx((55 + 25) / 2)
    del made["lora-rating", 0], made["lora-rating", 1]
    *_, average = compare(todo.suite, todo.cells, todo.seeds, made)
    assert average["ours"] is None
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
    assert [one["ours"] for one in found] == pytest.approx(medians if statistic == "median" else means)
    assert average["ours"] == pytest.approx((110 if statistic == "median" else 350 / 3) / 3)


def test_finished_runs_are_taken_as_they_are(todo: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(iter(todo.jobs.values()))
    assert first.status() == "to do"
    assert run_job(first).result is not None
    assert first.status() == "finished"
    ran: list[str] = []

    def note(job: Job) -> Outcome:
        ran.append(job.name)
        return Outcome(job, error="not run in this test")

    finished = [one.job.name for one in in_turn(todo.jobs.values(), note) if one.error is None]
    assert first.name not in ran
    assert len(ran) == 3
    assert finished == [first.name]
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    assert [one["missing"] for one in compared] == [1 if one["scores"] else 2 for one in compared]


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others(todo: Reproduction) -> None:
    bad = todo.jobs["lora-sentiment", 0]
    bad.folder.mkdir(parents=True)
    base = bad.recipe.base.model_copy(update={"name": str(bad.folder)})  # a folder without a model
    broken = bad.recipe.model_copy(update={"base": base})
    todo.jobs["lora-sentiment", 0] = Job(bad.name, broken, bad.folder)
    ended = list(in_turn(todo.jobs.values()))
    (failed,) = (one for one in ended if one.error is not None)
    assert failed.job.name == bad.name
    assert failed.error.startswith(f"model: '{bad.folder}' cannot be loaded")
    assert "Traceback" in (bad.folder / "log.txt").read_text()
    assert len(ended) == 4
    outcome = run_job(bad)  # what it printed does not keep the folder from the corrected recipe
    assert outcome.result is not None, outcome.error


def test_another_recipes_run_is_an_error_not_a_result(todo: Reproduction) -> None:
    job = todo.jobs["lora-sentiment", 0]
    assert run_job(job).result is not None
    other = Job(job.name, job.recipe.model_copy(update={"seed": 7}), job.folder)
    with pytest.raises(UserError, match=r"holds the run of another recipe; they differ in seed"):
        other.result()
    (outcome,) = in_turn([other])
    assert "another recipe" in outcome.error
    todo.jobs["lora-sentiment", 0] = other
    assert (other.status(), todo.results()) == ("started", {}), "the other runs of the table are not stopped by it"


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


def test_a_failed_run_is_exit_code_1(aurora: Callable[..., Any]) -> None:
    done = aurora("--only", "lora-sentiment", "--seeds", "0,1", "training.precision=fp16")
    assert done.exit_code == 1
    assert "2 failed; the same command tries them again" in done.stderr
    assert "0 of 2" in done.stdout
