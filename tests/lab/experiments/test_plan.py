"""The plan of a suite: for which machine, what is counted in its hours, and how it looks in a terminal."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data import get_task
from aurora_lora.data.task import SplitSizes
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments import flops, machines, text_lengths
from aurora_lora.lab.experiments.estimate import Estimate, describe, estimate, time_limit, trained_parameters
from aurora_lora.lab.experiments.flops import Hours
from aurora_lora.lab.experiments.machines import GPUS, of_cpu, of_gpu
from aurora_lora.lab.experiments.recipe_kinds import load_any
from aurora_lora.lab.experiments.recipes import suites
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.runs_file import RunsFile
from aurora_lora.lab.report.plan import plan_lines, plan_tables
from aurora_lora.methods import ParameterCounts, get_method
from aurora_lora.train.recipe import Recipe, validate

RESULTS = Path(__file__).parents[3] / "results"


def recipe_of(name: str, *overrides: str) -> Recipe:
    recipe = load_any(name, overrides)
    assert isinstance(recipe, Recipe)
    return recipe


# ---------------------------------------------------------------- the machine


def test_a_plan_is_for_the_paper_s_gpu_this_machine_or_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "here", lambda: of_cpu(2, 16))
    monkeypatch.setattr("aurora_lora.lab.experiments.estimate.here", lambda: of_cpu(2, 16))
    table2 = prepare("table2", "hub", tmp_path, only=["lora"])
    packaged = prepare("table1", "packaged", tmp_path, only=["lora-movie-sentiment"], seeds=[0])
    assert describe(table2)[0]["machine"] == "L20"
    assert describe(table2, "a100")[0]["machine"] == "A100"
    assert describe(table2, "here")[0]["machine"] == "CPU of 2 cores"
    assert describe(packaged)[0]["machine"] == "CPU of 2 cores"
    with pytest.raises(UserError, match=r"`gpu`: 'L21' is an unknown GPU; did you mean 'L20'\?"):
        describe(table2, "L21")


@pytest.mark.parametrize("name", ["lora", "aurora"])
def test_a_budget_is_counted_not_the_rank(name: str) -> None:
    recipe = recipe_of("table1/base-lora-rte")

    def with_method(**options: Any) -> Recipe:
        return recipe.model_copy(update={"method": get_method(name).bind(options)})

    linear = ["query", "key", "value", "dense"]
    layers, hidden, inner = 12, 768, 3072
    pairs = layers * (4 * 2 * hidden + 2 * (hidden + inner))  # A and B of rank 1 in all linear layers
    for budget in (100_000, 8 * pairs):
        found = trained_parameters(with_method(budget=budget))
        if name == "lora":
            assert found.adapter == budget
        else:  # and sigma
            assert budget < found.adapter < 1.01 * budget
        assert found.total - found.adapter == trained_parameters(recipe).total - trained_parameters(recipe).adapter
    in_words = trained_parameters(with_method(budget="r=8 on query and value"))
    assert in_words == trained_parameters(with_method(budget=layers * 2 * 8 * 2 * hidden))
    usual = estimate(with_method(r=8, target_modules=linear), of_gpu("L20", 48)).memory_gb
    assert estimate(with_method(budget=8 * pairs), of_gpu("L20", 48)).memory_gb == pytest.approx(usual, rel=0.02)


@pytest.mark.parametrize(
    ("cuda", "gb", "like"),
    [
        ("NVIDIA L20", 47.7, "L20"),
        ("NVIDIA L4", 23.7, "L4"),
        ("NVIDIA GeForce RTX 4090", 25.3, "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", 42.4, "A100"),
        ("NVIDIA H100 80GB HBM3", 85, "H100"),
        ("Some GPU of tomorrow", 47, "L20"),
    ],
)
def test_the_gpu_that_is_there(cuda: str, gb: float, like: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=cuda, total_memory=gb * 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = machines.here()
    assert (found.half, found.fp32, found.memory_gb) == (GPUS[like].half, GPUS[like].fp32, gb)
    assert found == of_gpu(cuda, gb)
    assert like in found.name


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    too_large = ["training.gradient_checkpointing=false", "training.batch_size=64", "training.precision=fp32"]
    todo = prepare("table2", "hub", tmp_path, only=["lora", "aurora-paper"], overrides=too_large)
    rows = describe(todo)
    assert not any(row["fits"] for row in rows)
    assert "2 of them do NOT fit in the 48 GB of one L20: lora, aurora-paper." in " ".join(plan_lines(rows))
    fits = describe(prepare("table2", "hub", tmp_path))
    assert all(row["fits"] for row in fits)
    assert "NOT" not in " ".join(plan_lines(fits))


def test_the_command_plans_for_the_gpu_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", "table2", "--scale", "hub", "--only", "lora", "--dry-run"]
    done = CliRunner().invoke(cli.app, [*command, "--gpu", "A10", "training.gradient_checkpointing=false"])
    assert done.exit_code == 0, done.output
    assert "on one A10, one after the other." in done.stdout
    assert "1 of them do NOT fit in the 24 GB of one A10: lora." in " ".join(done.stdout.split())
    done = CliRunner().invoke(cli.app, [*command, "--gpu", "none"])
    assert done.exit_code == 2
    assert done.stderr == f"--gpu: 'none' is an unknown GPU (allowed: {', '.join(GPUS)}, here)\n"


# ---------------------------------------------------------------- the hours


def measured() -> Iterator[tuple[Recipe, float]]:
    """A recipe of each method and task of the studies, and the seconds that the fastest of its runs trained.

    The others shared the machine with more runs than it has cores.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    runs = [
        (path.parent.name, result)
        for path in sorted(RESULTS.glob("studies/*/runs.jsonl"))
        for result in RunsFile(path.parent).read().values()
    ]
    for study, result in runs:
        key = (study, result["model"], result["method"], result["task"])
        found[key] = min(found.get(key, result), result, key=lambda one: float(one["time"]["train_s"]))
    for result in found.values():
        recipe = {**result["recipe"], "task": {**result["recipe"]["task"], "teacher": None}}
        yield validate(recipe, "result"), result["time"]["train_s"]


@pytest.mark.slow
def test_hours_on_a_cpu_are_those_of_the_studies() -> None:
    """Within a factor of two of what was measured, each on one thread."""
    machine, checked = of_cpu(2, 16), 0
    for recipe, seconds in measured():
        assert recipe.training.threads == 1
        parts = flops.hours(recipe, machine)
        assert parts is not None
        assert 0.5 < 3600 * parts.training / seconds < 2, (recipe.method.name, recipe.task.name, seconds)
        checked += 1
    assert checked >= 20


def test_lora_on_the_paper_s_gpu_takes_about_as_long_as_the_paper_says() -> None:
    """Its Table 7: 15.05 hours of training and inference."""
    assert 0.5 < (estimate(recipe_of("table2/lora"), GPUS["L20"]).hours or 0) / 15.05 < 2


def test_evaluation_counts() -> None:
    """Each form, each test set, each beam; the calibrations; each epoch."""
    gpu = GPUS["L20"]
    lora, aurora = (flops.hours(recipe_of(f"table2/{name}"), gpu) for name in ("lora", "aurora"))
    assert lora is not None
    assert aurora is not None
    assert aurora.generation == pytest.approx(3 * lora.generation, rel=0.01)
    assert aurora.generation > 2
    assert (lora.calibration, aurora.calibration > 0) == (0, True)
    two = flops.hours(recipe_of("table2/lora", "task.test_sets=[boolq,piqa]"), gpu)
    assert two is not None
    assert two.generation == pytest.approx(lora.generation * (3270 + 1838) / 22_419, rel=0.01)
    one, four = (flops.hours(recipe_of("table1/base-lora-sst2", f"training.epochs={n}"), gpu) for n in (1, 4))
    assert one is not None
    assert four is not None
    assert four.evaluation == pytest.approx(one.evaluation * 5 / 2)  # and once in the end
    by_likelihood = flops.hours(recipe_of("table2/lora", "task.scorer=choices"), gpu)
    assert by_likelihood is not None
    assert by_likelihood.generation == 0


def test_the_time_that_a_cluster_is_asked_for() -> None:
    recipe = recipe_of("table2/lora")
    hours = estimate(recipe, GPUS["L20"]).hours
    assert hours is not None
    assert time_limit(recipe, "L20") == pytest.approx(2 * 60 * hours, abs=1)
    assert time_limit(recipe, None) > time_limit(recipe, "L20") > time_limit(recipe, "H100")
    assert time_limit(recipe_of("table1/lora-movie-sentiment"), None) == 30


# ---------------------------------------------------------------- lengths and sizes


def test_lengths() -> None:
    recipe = recipe_of("table2/lora")
    assert 218 <= text_lengths.padded(recipe, 16) <= 238
    assert text_lengths.padded(recipe, 1) < text_lengths.padded(recipe, 4) < text_lengths.padded(recipe, 16) < 256
    assert text_lengths.longest(recipe) == 256
    similarity = recipe_of("table1/base-lora-stsb")
    assert similarity.task.max_length == 512
    assert text_lengths.longest(similarity, 514) == 129
    assert 60 < text_lengths.padded(similarity, 16) < 80


def test_lengths_of_packaged_data_are_its_own() -> None:
    """Against what the tokenizer gives."""
    from aurora_lora.train.models import load_tokenizer

    recipe = recipe_of("table1/lora-movie-sentiment")
    texts = get_task("movie-sentiment").load(SplitSizes(1500, 1000, 2000), 0)["train"]["text"]
    found = [min(len(ids), 48) for ids in load_tokenizer("minilm-l6")(list(texts))["input_ids"]]
    batches = [max(found[at : at + 32]) for at in range(0, 1472, 32)]
    assert text_lengths.padded(recipe, 1) == pytest.approx(statistics.mean(found), rel=0.05)
    assert text_lengths.padded(recipe, 32) == pytest.approx(statistics.mean(batches), rel=0.05)


@pytest.mark.parametrize("name", ["digits", "cifar10-10k", "siqa", "wikihow-goal", "strategyqa", "winowhy"])
def test_sizes_of_packaged_data_are_its_own(name: str) -> None:
    task = get_task(name)
    assert task.train_examples == len(task.load_splits(task.sizes, 0)["train"])


def test_each_run_of_each_suite_has_a_length(tmp_path: Path) -> None:
    for suite, scales in suites().items():
        for scale in scales:
            for job in prepare(suite, scale, tmp_path).jobs.values():
                if isinstance(job.recipe, Recipe):
                    for split in ("train", "validation", *job.recipe.test_sets):
                        assert text_lengths.examples(job.recipe, split), (suite, scale, split)


# ---------------------------------------------------------------- in a terminal


@pytest.mark.parametrize(("suite", "scale"), [(name, scale) for name, scales in suites().items() for scale in scales])
def test_80_columns_hold_it(suite: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Estimate(ParameterCounts(123_456_789, 0, 10**9), 1234.5, Hours(1234, 5, 6))
    monkeypatch.setattr("aurora_lora.lab.experiments.estimate.estimate", lambda *_: needs)
    todo = prepare(suite, scale, tmp_path)
    rows: list[Any] = describe(todo, "L20")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in plan_tables(todo.suite, rows):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for name in {row["recipe"] for row in rows}:
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split()[-1] == f"0/{len(todo.seeds)}"
