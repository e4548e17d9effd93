"""`aurora train --dry-run`: what is said of a run before it, from its own data, and nothing of it done."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chats
import datasets
import numpy as np
import own_files
import pytest
import tiny
import torch
from torch import nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments import dry_run as module
from aurora_lora.lab.experiments import shapes, text_lengths
from aurora_lora.lab.experiments.dry_run import dry_run
from aurora_lora.lab.experiments.estimate import estimate
from aurora_lora.lab.experiments.fitting import changes, fitting, smaller_batches
from aurora_lora.lab.experiments.machines import GPUS, ROOM, Machine
from aurora_lora.lab.experiments.recipe_kinds import load_any
from aurora_lora.lab.experiments.text_lengths import Sizes
from aurora_lora.lab.report.plan import LESS, NO_CHANGE
from aurora_lora.train.build import load_data, load_processor
from aurora_lora.train.data import Data
from aurora_lora.train.kinds import texts as kinds_of_texts
from aurora_lora.train.recipe import Recipe

LONG = ["model.quantization=nf4", "training.precision=bf16", "training.gradient_checkpointing=true"]


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
    return load_data(recipe, load_processor(recipe.model, recipe.task.definition))


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
    assert (found["texts"]["cut"] > 0) == ("task.max_length" in "".join(more[:1]))
    if not more:
        assert max(lengths) < (recipe.task.max_length or 0)  # what would be taken without the data


def test_texts_are_cut_where_the_tokenizer_says(tmp_path: Path) -> None:
    """It may state fewer tokens than the model has positions of."""
    recipe = recipe_of("classification")
    shutil.copytree(recipe.model, tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 6}))
    found = dry_run(recipe_of("classification", f"model={tmp_path / 'model'}"), "T4")
    assert found["texts"]["max_length"] == found["texts"]["longest"] == 6
    assert found["texts"]["cut"] > 0


def test_the_padding_of_random_batches() -> None:
    recipe = recipe_of("classification")
    found = Sizes({}, {"train": [int(8 + 1.5 * number**0.7) for number in range(400)]}, 2)
    rng = np.random.default_rng(0)
    lengths = np.array(found.lengths["train"])
    for batch in (1, 4, 32):
        drawn = np.mean([rng.choice(lengths, batch, replace=False).max() for _ in range(4000)])
        assert text_lengths.padded(recipe, batch, None, found) == pytest.approx(float(drawn), rel=0.03)


def test_of_many_texts_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds_of_texts, "IN_MEMORY", 10)
    monkeypatch.setattr(kinds_of_texts, "SAMPLE", 5)
    found = dry_run(recipe_of("classification"), "T4")
    assert (found["examples"]["train"], found["texts"]["looked_at"]) == (40, 5)


def test_the_classes_of_the_data_are_in_the_head() -> None:
    assert dry_run(recipe_of("images"), "T4")["params"]["head"] == 3 * (16 + 1)


@pytest.mark.parametrize("kind", ["classification", "chat"])
def test_longer_texts_need_more_memory(kind: str) -> None:
    recipe = recipe_of(kind)
    one, four, limit = (
        estimate(recipe, GPUS["T4"], Sizes({"train": 40, "validation": 5, "test": 5}, lengths, 1))
        for lengths in ({"train": [8, 12]}, {"train": [8, 24]}, {})
    )
    assert one.memory_gb < four.memory_gb < limit.memory_gb == estimate(recipe, GPUS["T4"]).memory_gb
    assert one.hours is not None


# ---------------------------------------------------------------- what would fit


def small(memory_gb: float, **more: Any) -> Machine:
    return Machine("small", memory_gb, 8, 65, 320, **more)


def test_changes_that_fit_are_found_in_their_order() -> None:
    """Each takes less than the one before: of a machine that the k-th fits, it is the k-th."""
    recipe = recipe_of("chat", "training.batch_size=12", "task.max_length=128")
    sizes = Sizes.of(data_of(recipe))
    tried = list(changes(recipe, small(1)))
    batches = [(12, 4), (6, 8), (3, 16), (1, 48)]
    keys = [(f"training.batch_size={a}", f"training.gradient_accumulation_steps={b}") for a, b in batches[1:]]
    first = ("training.precision=bf16",)
    second = (*first, "training.gradient_checkpointing=true")
    nf4 = (*second, "model.quantization=nf4")
    assert tried == [first, second, *((*second, *one) for one in keys), nf4, *((*nf4, *one) for one in keys)]
    for overrides in tried[:3]:
        changed = recipe_of("chat", "training.batch_size=12", "task.max_length=128", *overrides)
        needs = estimate(changed, small(1), sizes)
        found = fitting(recipe, small(1.001 * needs.memory_gb / ROOM), sizes)
        assert found is not None
        assert (found.overrides, found.fits) == (overrides, True)
        assert found.needs == needs


def test_smaller_batches_in_evaluations_are_tried_where_these_take_most() -> None:
    """Before anything that is trained is changed; and not where an evaluation takes little."""
    large = ("training.gradient_checkpointing=true", "training.batch_size=2", "task.max_length=128")
    recipe, wanted = (recipe_of("classification", *large, f"training.eval_batch_size={n}") for n in (4096, 2))
    whole, needs = (estimate(one, small(1)).memory_gb for one in (recipe, wanted))
    assert needs < whole / 2
    found = fitting(recipe, small(1.001 * needs / ROOM))
    assert found is not None
    assert (found.overrides, found.fits) == (("training.eval_batch_size=2",), True)
    least = fitting(wanted, small(1e-9))
    assert least is not None
    assert not any("eval_batch_size" in one for one in least.overrides)


def test_where_nothing_fits_the_least_is_told() -> None:
    recipe = recipe_of("chat")
    found = fitting(recipe, small(1e-9))
    assert found is not None
    assert not found.fits
    assert {"training.batch_size=1", "training.gradient_accumulation_steps=16"} <= set(found.overrides)


def test_only_what_the_recipe_allows_is_tried() -> None:
    small_gpu = small(1e-9, half_precision="fp16")
    full = recipe_of("classification", "method={name: full}")
    found = fitting(full, small_gpu)
    assert found is not None
    assert "training.precision=fp16" in found.overrides
    assert "model.quantization=nf4" not in found.overrides
    smallest = recipe_of("classification", *LONG, "training.batch_size=1", "training.eval_batch_size=1")
    assert list(changes(smallest, small_gpu)) == []
    assert fitting(smallest, small_gpu) is None
    assert list(smaller_batches(recipe_of("chat", "training.batch_size=1").training)) == []


def test_quantised_weights_are_counted_as_they_are_kept() -> None:
    """Half a byte each, and a scale for 64 of them, in the layers; one layer at a time is there in full."""
    plain = shapes.weights(recipe_of("classification"))
    body: Any = shapes.pretrained(recipe_of("classification"))
    linear = [
        module.weight
        for name, module in body.bert.encoder.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("pooler.dense")
    ]
    linear += [body.bert.pooler.dense.weight] if body.bert.pooler is not None else []
    many, widest = sum(one.numel() for one in linear), max(one.numel() for one in linear)
    for name, each in (("nf4", 0.5 + 4 / 64), ("int8", 1)):
        quantised = shapes.weights(recipe_of("classification", f"model.quantization={name}"))
        assert quantised.params == plain.params
        assert quantised.bytes == pytest.approx(plain.bytes - 4 * many + each * many + 4 * widest, abs=1)


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


def test_what_is_printed_to_be_pasted_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = command("chat", "training.batch_size=12", "task.max_length=128")
    needs = json.loads(aurora(*given, "--dry-run", "--gpu", "T4", "--json").stdout)
    assert (needs["fits"], needs["fitting"]) == (True, None)
    tight = small(0.6 * estimate(recipe_of(*given), GPUS["T4"], Sizes.of(data_of(recipe_of(*given)))).memory_gb)
    monkeypatch.setattr(module, "here", lambda: tight)
    done = aurora(*given, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "it does NOT fit" in done.stdout
    assert LESS not in " ".join(done.stdout.split())
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  "))
    again = aurora(*given, *shlex.split(line), "--dry-run", "--json")
    assert json.loads(again.stdout)["fits"] is True
    monkeypatch.setattr(module, "here", lambda: small(1e-9))
    done = aurora(*given, "--dry-run")
    assert f"{LESS} {NO_CHANGE}: it needs about 0.1 GB at least" in " ".join(done.stdout.split())


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (command("classification", "task.text=reviw", "--dry-run"), "task.text: reviews.csv has no column 'reviw'"),
        (command("classification", "method.target_modules=[querry]", "--dry-run"), "method: target_modules: 'querry'"),
        (command("classification", "model=nope", "--dry-run"), "model: 'nope', which is no folder here, cannot be"),
        (command("classification", "--dry-run", "--gpu", "L21"), "--gpu: 'L21' is an unknown GPU; did you mean"),
        (command("classification", "--gpu", "L20", "-o", "run"), "--gpu goes with --dry-run"),
        (command("classification", "--dry-run", "-o", "pictures"), "run.yaml"),
        (command("classification"), "Missing option '--output' / '-o'."),
    ],
)
def test_mistakes(args: list[str], message: str) -> None:
    if message == "run.yaml":  # a folder that holds something else
        Path("pictures/result.json").write_text("{}")
        message = "pictures holds result.json but no recipe.yaml"
    done = aurora(*args)
    Path("pictures/result.json").unlink(missing_ok=True)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    *notes, error = done.stderr.splitlines()
    assert message in error
    assert all(line.startswith("aurora: ") for line in notes)  # what is said of the data


def test_a_model_has_too_few_positions(own: Path) -> None:
    shutil.copytree(own / "bert", own / "unlimited")
    path = own / "unlimited" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**6}))
    with pytest.raises(UserError, match=r"task\.max_length: 100 tokens are more than the 32 positions of unlimited"):
        dry_run(recipe_of("classification", "model=unlimited", "task.max_length=100"), "T4")


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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.target_modules=[to_q, to_kk]", "method: target_modules: 'to_kk' is an unknown module"),
        ("method.budget=1000", "method.budget: 1000 is not allowed"),
    ],
)
def test_what_a_subjects_training_refuses_is_not_planned(override: str, words: str) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    done = aurora("figure4/smoke", override, "--dry-run")
    assert done.exit_code == 2, done.output
    assert words in done.stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for a machine without a GPU")
def test_a_subjects_precision_is_that_of_this_machine() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    done = aurora("figure4/smoke", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("training.precision: 'fp16' needs a GPU")


def test_a_reference_counts() -> None:
    reference = "reference={method: {name: full}}"
    alone, with_it = (dry_run(recipe_of("classification", *more), "T4") for more in ((), (reference,)))
    assert (alone["reference"], with_it["reference"]) == (None, "full")
    assert with_it["hours"] > alone["hours"]


def test_a_gpu_is_full_at_nine_tenths() -> None:
    assert (small(10).fits(9), small(10).fits(9.01), small(10, cores=2).fits(10)) == (True, False, True)


def test_a_batch_is_no_larger_than_the_data() -> None:
    """Which are 40 examples to train on."""
    large, enough = (dry_run(recipe_of("classification", f"training.batch_size={size}")) for size in (4096, 40))
    assert (large["memory_gb"], large["steps"]) == (enough["memory_gb"], enough["steps"])


def test_what_cannot_be_counted_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(shapes, "_count", breaks)
    shapes._step_shapes.cache_clear()
    given = command("classification")
    record = json.loads(aurora(*given, "--dry-run", "--json").stdout)
    assert [record[key] for key in ("memory_gb", "fits", "hours", "fitting")] == [None] * 4
    assert record["why"].endswith("cannot be counted: no such operator")
    shown = " ".join(aurora(*given, "--dry-run").stdout.split())
    assert "memory not known: the shapes of" in shown
    assert "time not known Nothing was trained." in shown


def test_a_base_that_is_stored_quantised_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from aurora_lora.lab.experiments import estimate as estimating

    monkeypatch.setattr(estimating, "is_stored_quantised", lambda model: True)
    assert dry_run(recipe_of("chat"))["why"].endswith("are stored quantised, which a plan does not count")


def test_a_dry_run_is_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="one process"):
        dry_run(recipe_of("chat"))
