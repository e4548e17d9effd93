"""Pretraining a tiny ViT into the cache: once, resumed, usable by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchvision")

import tiny
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data.models import MODELS, PretrainedHere, resolve_model
from aurora_lora.errors import UserError
from aurora_lora.files import file_digest
from aurora_lora.train import recipe_files
from aurora_lora.train.models import RESULT_OF_PRETRAINING
from aurora_lora.train.recipe import validate
from aurora_lora.train.run import ensure, pretrain

VIT: Any = MODELS["vit-fashion-mnist"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedHere:
    """A tiny model that takes two seconds, and an empty cache."""
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "cache"))
    model = replace(
        VIT,
        name="vit-tiny",
        vit=tiny.VIT,
        task={"name": "tiny-images", "train_size": 96},
        training={"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "threads": 1, "checkpoint_every": 4},
    )
    monkeypatch.setitem(MODELS, model.name, model)
    return model


def recipe(model: str) -> dict[str, Any]:
    training = {"epochs": 1, "batch_size": 16, "threads": 1}
    return {**tiny.image_recipe(Path("."), training=training), "model": model}


def test_trained_once_into_the_cache(made: PretrainedHere) -> None:
    with pytest.raises(UserError, match=r"vit-tiny is not in the cache .*: `aurora pretrain vit-tiny` makes it"):
        resolve_model("vit-tiny")
    folder = pretrain("vit-tiny")
    assert folder == made.folder == Path(resolve_model("vit-tiny"))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    result = json.loads((folder / RESULT_OF_PRETRAINING).read_text())
    assert (result["task"], result["method"], len(result["epochs"])) == ("tiny-images", "full", 2)
    weights = load_file(str(folder / "model.safetensors"))
    assert not any("classifier" in name for name in weights)
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    ensure(["vit-tiny", "minilm-l6"])
    assert pretrain("vit-tiny") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    plain, report = AutoModelForImageClassification.from_pretrained(folder, num_labels=7, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"classifier"}
    assert not report["unexpected_keys"]
    assert plain.config.hidden_size == 16


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_weights(
    made: PretrainedHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        pretrain("vit-tiny", make_callbacks=lambda: [tiny.Stop(10)])
    assert not made.is_there
    first = load_file(str(pretrain("vit-tiny") / "model.safetensors"))
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "another"))
    second = load_file(str(pretrain("vit-tiny") / "model.safetensors"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_and_a_run_on_it(made: PretrainedHere, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_files.dump(recipe("vit-tiny")))
    done = CliRunner().invoke(cli.app, ["train", str(path), "-o", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    assert "pretraining vit-tiny: epoch 2 of 2" in done.stderr
    shown = CliRunner().invoke(cli.app, ["pretrain", "vit-tiny"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("vit-tiny on tiny-images, 30 test examples: accuracy % ")
    printed = json.loads(CliRunner().invoke(cli.app, ["pretrain", "vit-tiny", "--json"]).stdout)
    assert (printed["folder"], printed["result"]["task"]) == (str(made.folder), "tiny-images")
    for name in ("adapter", "lora"):
        card = (tmp_path / "run" / name / "README.md").read_text()
        assert "base_model: vit-tiny" in card
        assert "base = resolve_model('vit-tiny')" in card
    digest = f"sha256:{file_digest(made.folder / 'model.safetensors')}"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["model_commit"] == digest


def test_the_one_on_fashion_is_as_it_says() -> None:
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        model = ViTModel(ViTConfig(**VIT.vit), add_pooling_layer=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == VIT.params
    validate({"name": "x", "model": "x", "method": "full", "task": VIT.task, "training": VIT.training}, "x")
