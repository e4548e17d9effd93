"""`aurora train --dry-run`: what is said of a run before it, from its own data, and nothing of it done."""

import json
from pathlib import Path
from typing import Any

import chats
import datasets
import own_files
import pytest
import tiny
from transformers import PreTrainedModel
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.lab.experiments.dry_run import dry_run
from aurora_lora.lab.experiments.plan import GPUS, Sizes, needs
from aurora_lora.lab.experiments.recipes import load_any
from aurora_lora.train.data import Data
from aurora_lora.train.kinds import kind_of
from aurora_lora.train.recipe import Recipe
from aurora_lora.train.run import load_data


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every kind and a model for each."""
    folder = own_files.write_images(own_files.write_texts(tmp_path_factory.mktemp("own")))
    tiny.save_model(folder / "bert")
    tiny.save_language_model(folder / "causal")
    tiny.save_vit(folder / "vit")
    chats.write(folder / "chats.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _here(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(own / "cache"))
    monkeypatch.chdir(own)


def command(kind: str, *more: str) -> list[str]:
    model = {"choices": "causal", "chat": "causal", "images": "vit"}.get(kind, "bert")
    of_chat = ["task.data=chats.jsonl", "task.chat_template=chatml", "method.target_modules=all-linear"]
    return [kind, f"model={model}", *(of_chat if kind == "chat" else own_files.OVERRIDES[kind]), *more]


def recipe_of(kind: str, *more: str) -> Recipe:
    name, *overrides = command(kind, *more)
    recipe = load_any(name, overrides)
    assert isinstance(recipe, Recipe)
    return recipe


def data_of(recipe: Recipe) -> Data:
    return load_data(recipe, kind_of(recipe.task.definition).processor(recipe.base))


def aurora(*args: str) -> Any:
    return CliRunner().invoke(cli.app, ["train", *args])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        *((kind, ()) for kind in own_files.OVERRIDES),
        ("classification", ("task.max_length=8",)),
        ("choices", ("task.max_length=12",)),
        ("chat", ()),
        ("chat", ("task.packing=true", "task.max_length=64")),
    ],
)
def test_examples_and_lengths_are_those_of_the_data(kind: str, more: tuple[str, ...]) -> None:
    """As the training's own batches have them."""
    recipe = recipe_of(kind, *more)
    found, data = dry_run(recipe, "T4"), data_of(recipe)
    train = data.splits["train"]
    rows = found.get("rows", found["examples"]["train"])
    assert rows == len(train)
    assert {**found["examples"], "train": rows} == {name: len(split) for name, split in data.splits.items()}
    training = recipe.training
    assert found["steps"]["epoch"] == -(-rows // (training.batch_size * training.gradient_accumulation_steps))
    assert found["hours"] > 0
    if kind == "images":
        assert found["texts"] is None
        return
    lengths = [data.collate([train[row]])["input_ids"].shape[1] for row in range(len(train))]
    assert found["texts"]["longest"] == max(lengths)
    assert found["texts"]["mean"] == pytest.approx(sum(lengths) / len(lengths))
    if not more:
        assert max(lengths) < (recipe.task.max_length or 0)  # what would be taken without the data


@pytest.mark.parametrize("kind", ["classification", "chat"])
def test_longer_texts_need_more_memory(kind: str) -> None:
    recipe = recipe_of(kind, "training.batch_size=40", "training.eval_batch_size=1")
    one, four, limit = (
        needs(recipe, GPUS["T4"], Sizes({"train": 40, "validation": 5, "test": 5}, lengths, 1))["memory_gb"]
        for lengths in ({"train": [8, 12]}, {"train": [8, 24]}, {})
    )
    assert one < four < limit == needs(recipe, GPUS["T4"])["memory_gb"]


# ---------------------------------------------------------------- the command


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("weights are loaded")


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)


@pytest.mark.usefixtures("weightless")
def test_nothing_is_loaded_trained_or_written(own: Path) -> None:
    before = sorted(path for path in own.iterdir() if path.name != "cache")
    done = aurora(*command("classification"), "--dry-run", "--gpu", "rtx 4090", "-o", "run")
    assert done.exit_code == 0, done.output
    assert sorted(path for path in own.iterdir() if path.name != "cache") == before
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert shown["data"] == "classification of reviews.csv: 40 train, 5 validation, 5 test"
    assert shown["steps"] == "6 in all, 2 an epoch, of 32 examples each"
    assert shown["memory"] == "about 0.1 GB at the peak, of 24 GB of one RTX 4090: it fits"
    assert shown["time"].startswith("about 1 min: ")
    assert "aurora: examples: 40 train, 5 validation, 5 test" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (command("classification", "task.text=reviw", "--dry-run"), "task.text: reviews.csv has no column 'reviw'"),
        (command("classification", "--dry-run", "--gpu", "L21"), "--gpu: 'L21' is an unknown GPU; did you mean"),
    ],
)
def test_mistakes(args: list[str], message: str) -> None:
    done = aurora(*args)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    *notes, error = done.stderr.splitlines()
    assert message in error
    assert all(line.startswith("aurora: ") for line in notes)  # what is said of the data


def test_a_model_that_is_pretrained_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "none"))
    said: list[str] = []
    found = dry_run(load_any("images", ["model=vit-fashion-mnist", "task.data=pictures"]), "T4", say=said.extend)
    assert said == [
        "vit-fashion-mnist is pretrained first, and what makes its images is not there yet: no data are loaded"
    ]
    assert (found["examples"], found["hours"]) == ({}, None)


def test_a_subject_is_planned_without_its_images() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    done = aurora("figure4/smoke", "--dry-run", "--gpu", "T4", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["steps"] == {"all": 20, "examples": 4}
    assert found["memory_gb"] > 1


def test_a_reference_counts() -> None:
    reference = "reference={method: {name: full}}"
    alone, with_it = (dry_run(recipe_of("classification", *more), "T4") for more in ((), (reference,)))
    assert (alone["reference"], with_it["reference"]) == (None, "full")
    assert with_it["hours"] > alone["hours"]


def test_a_batch_is_no_larger_than_the_data() -> None:
    """Which are 40 examples to train on."""
    large, enough = (dry_run(recipe_of("classification", f"training.batch_size={size}")) for size in (4096, 40))
    assert (large["memory_gb"], large["steps"]) == (enough["memory_gb"], enough["steps"])
