"""Plans: parameters and memory by formula against an independent count, and what `--dry-run` says of own data."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_files
import pytest
import tiny
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data import get_task
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.dry_run import describe, dry_run, plan_tables
from aurora_lora.lab.experiments.plan import GPUS, Machine, Sizes, estimate, machine, needs, shapes
from aurora_lora.lab.experiments.recipes import load_any
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.train.recipe import Recipe, examples_of_a_step

L20 = Machine("L20", *GPUS["L20"])
COUNTED: dict[str, tuple[int, float]] = json.loads(Path(__file__).with_name("planned.json").read_text())
"""Adapter and gigabytes of the paper's recipes, as autograd was counted to keep them in whole steps on fake tensors.
Those of the two cells of Table 1 that accumulate follow from their rows: linear in a pass's tokens, and gradients."""
DROPS = "base-adapter-d"
"""The count has too little of it: all layers above the dropped ones keep what a step needs."""


def recipe_of(name: str, *overrides: str) -> Recipe:
    recipe = load_any(name, overrides)
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("name", ["table1/base-lora-rte", "table2/lora", "table3/large-full-dtd", "table2/pissa-siqa"])
def test_memory_is_within_a_fifth_of_what_was_counted(name: str) -> None:
    found = needs(load_any(name), L20)
    assert found["params"]["adapter"] == COUNTED[name][0]
    assert found["memory_gb"] == pytest.approx(COUNTED[name][1], rel=0.2)


@pytest.mark.parametrize("name", ["table1/large-full-rte", "table1/large-fourierft-qnli"])
def test_large_rows_of_table_1_fit_on_24_gb(name: str) -> None:
    """By accumulation, in steps of the paper's batch, of which a whole one does not fit beside CUDA."""
    card, whole = machine("RTX 4090"), ("training.batch_size=32", "training.gradient_accumulation_steps=1")
    found = recipe_of(name)
    assert examples_of_a_step(found.training) == 32
    assert needs(found, card)["fits"]
    needed = needs(recipe_of(name, *whole), card)
    row = {"recipe": name, "seed": 0, "model": "roberta", "status": "", **needed}
    assert 21.6 < needed["memory_gb"] < 24.6
    (table,) = plan_tables("Table 1", [row])
    assert f"do NOT fit in the 24 GB of one RTX 4090: {name}. A tenth of a GPU's memory is CUDA's." in table.note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "scale"),
    [(f"table{n}", scale) for n in (1, 2, 3) for scale in ("hub", "packaged")] + [("figure4", "hub")],
)
def test_whole_tables(suite: str, scale: str, tmp_path: Path) -> None:
    """The sizes of all that is in them are known."""
    todo, start = prepare(suite, scale, tmp_path), time.process_time()
    rows = describe(todo, "L20")
    assert time.process_time() - start < 30
    assert all(row["hours"] for row in rows)
    for row in rows:
        adapter, memory = COUNTED[f"{suite}/{row['recipe']}"]
        assert row["params"]["adapter"] == adapter
        if not row["recipe"].startswith(DROPS):
            assert row["memory_gb"] == pytest.approx(memory, rel=0.2), row["recipe"]


def test_quantised_weights_are_counted_as_they_are_kept() -> None:
    """Half a byte each, and a scale for 64 of them."""
    options = ("training.precision=bf16", "method.target_modules=[q_proj]")
    plain, quantised = (recipe_of("table2/lora", *options, *more) for more in ((), ("model.quantization=nf4",)))
    llama, linear = 8_030_261_248, 32 * (2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    held = [shapes(recipe, 1).held for recipe in (plain, quantised)]
    assert shapes(plain, 1).params.total - shapes(plain, 1).params.adapter == llama
    assert held[0] - held[1] == pytest.approx((2 - 0.5 - 4 / 64) * linear)


def test_hours_by_hand() -> None:
    """2 operations a weight and token in a pass, at 40% of 119.5 TFLOP/s; an embedding is looked up."""
    recipe = recipe_of("table2/lora", "training.gradient_checkpointing=true", "task.test_sets=[boolq]")
    sizes = Sizes({"train": 100_000, "validation": 0, "boolq": 0}, (200, 200), 1)
    params = shapes(recipe, 1).params
    step = 3 * 2 * (params.total - 128256 * 4096) * 200 * 100_000 / (0.4 * 119.5e12)  # forward, again, and backward
    loading = (10 + shapes(recipe, 1).held / 0.5e9) / 3600
    assert estimate(recipe, sizes, L20)[1] == pytest.approx(recipe.training.epochs * step / 3600 + loading)
    more = Sizes({**sizes.examples, "boolq": 1000}, sizes.tokens, 1)
    assert estimate(recipe, more, L20)[1] > estimate(recipe, sizes, L20)[1]  # type: ignore[operator]


@pytest.mark.parametrize("name", ["digits", "siqa", "wikihow-goal", "winowhy"])
def test_sizes_of_packaged_data_are_its_own(name: str) -> None:
    task = get_task(name)
    assert task.train_examples == len(task.load_splits(task.sizes, 0)["train"])


@pytest.mark.parametrize(
    ("cuda", "gb", "like"), [("NVIDIA A100-SXM4-40GB", 42.4, "A100"), ("Some GPU of tomorrow", 47, "L20")]
)
def test_the_gpu_that_is_there(cuda: str, gb: float, like: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=cuda, total_memory=gb * 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert machine("here") == Machine(cuda, gb, *GPUS[like][1:])
    with pytest.raises(UserError, match=r"`gpu`: 'L21' is an unknown GPU; did you mean 'L20'\?"):
        machine("L21")


# ---------------------------------------------------------------- own data


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = own_files.write_texts(tmp_path_factory.mktemp("own"))
    tiny.save_model(folder / "bert")
    return folder


@pytest.fixture(autouse=True)
def _here(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("weights are loaded")


def test_the_command_loads_data_and_no_weights(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    before = sorted(own.iterdir())
    args = ["train", "classification", "model=bert", *own_files.OVERRIDES["classification"]]
    done = CliRunner().invoke(cli.app, [*args, "--dry-run", "--gpu", "rtx 4090", "-o", "run"])
    assert done.exit_code == 0, done.output
    assert sorted(own.iterdir()) == before
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert shown["data"] == "classification of reviews.csv: 40 train, 5 validation, 5 test"
    assert shown["steps"] == "200 in all, 5 an epoch, of 8 examples each"
    assert shown["memory"] == "about 0.1 GB at the peak, of 24 GB of one RTX 4090: it fits"
    assert shown["time"] == "about 1 min"
    assert "aurora: examples: 40 train, 5 validation, 5 test" in done.stderr
    wrong = CliRunner().invoke(cli.app, [*args, "task.text=reviw", "--dry-run"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "task.text: reviews.csv has no column 'reviw'" in wrong.stderr


def test_longer_texts_and_larger_batches_need_more_memory() -> None:
    def memory(*more: str, longest: float = 32) -> float:
        recipe = recipe_of("classification", "model=bert", *own_files.OVERRIDES["classification"], *more)
        return estimate(recipe, Sizes({"train": 40, "validation": 5, "test": 5}, (8, longest), 2), L20)[0]

    small = memory("training.batch_size=8", "training.eval_batch_size=1")
    assert small < memory("training.batch_size=40", "training.eval_batch_size=1")
    assert memory("training.batch_size=40") == memory("training.batch_size=4096")  # no larger than the data
    assert memory(longest=8) < memory(longest=32)


def test_a_model_that_is_pretrained_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "none"))
    said: list[str] = []
    found = dry_run(load_any("images", ["model=vit-fashion-mnist", "task.data=pictures"]), "T4", say=said.extend)
    assert said == [
        "vit-fashion-mnist is pretrained first, and what makes its images is not there yet: no data are loaded"
    ]
    assert found["hours"] is None
