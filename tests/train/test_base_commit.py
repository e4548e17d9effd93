"""The revision of a base model of the hub: where it is loaded from, and the commit that a run writes down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import constants
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from aurora_lora.lab.experiments.dry_run import dry_run
from aurora_lora.lab.experiments.plan import architecture
from aurora_lora.train import card, load_recipe, load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.measuring import evaluate, ranking
from aurora_lora.train.models import (
    load_tokenizer,
    stored_quantization,
)
from aurora_lora.train.predicting import predict
from aurora_lora.train.recipe import ModelSection
from aurora_lora.train.run import load_trained_model

WriteRecipe = Callable[..., Path]
NAME = "some/model"
FIRST, SECOND = "a" * 40, "b" * 40
WIDTHS = {FIRST: 16, SECOND: 24}
FIXED: dict[str, Any] = {"name": NAME, "revision": "v2"}
AT_V2 = f"model={{name: {NAME}, revision: v2}}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of a model, of other widths: `main` is the first, `v2` the second."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--some--model"
    for commit, width in WIDTHS.items():
        tiny.save_model(folder / "snapshots" / commit, width=width)
    (folder / "refs").mkdir()
    for name, commit in (("main", FIRST), ("v2", SECOND)):
        (folder / "refs" / name).write_text(commit)
    return folder


def test_everything_is_loaded_from_the_revision(cache: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    settings = json.loads((cache / "snapshots" / SECOND / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 20
    (cache / "snapshots" / SECOND / "tokenizer_config.json").write_text(json.dumps(settings))
    first, second = ModelSection(name=NAME), ModelSection(**FIXED)
    assert (load_tokenizer(first).model_max_length, load_tokenizer(second).model_max_length) == (32, 20)
    assert (
        architecture(first.name, first.revision).hidden_size,
        architecture(second.name, second.revision).hidden_size,
    ) == (16, 24)
    config = json.loads((cache / "snapshots" / SECOND / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (cache / "snapshots" / SECOND / "config.json").write_text(json.dumps(quantised))
    assert stored_quantization(first) is None
    assert stored_quantization(second) == "bitsandbytes"
    (cache / "snapshots" / SECOND / "config.json").write_text(json.dumps(config))

    recipe = load_recipe(write_recipe(), [AT_V2, "training.epochs=1"])
    trained = 4 * (2 * 2 * 24 + 4 + 16)  # A and B of query and value in two layers, H, spline
    assert dry_run(recipe)["params"]["adapter"] == trained
    assert ranking(recipe, 400)["layers"][0]["d_in"] == 24
    run = train(recipe, tmp_path / "run")
    assert run.result["params"]["adapter"] == trained
    assert run.result["model_commit"] == SECOND
    assert run.result["recipe"]["model"] == FIXED

    found, _ = load_trained_model(load_run(run.folder))
    stored = load_file(cache / "snapshots" / SECOND / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(found.get_submodule("base_model.model.bert.embeddings.word_embeddings").weight, stored)
    scored = evaluate(load_run(run.folder), forms=["calibrated"])["calibrated"]
    assert scored == pytest.approx(run.result["metric"]["by_form"]["calibrated"], abs=1e-6)
    merged = merge(load_run(run.folder), tmp_path / "merged", form="calibrated").folder
    texts = ["the film was good", "a dull plot"]
    for one, other in zip(predict(run.folder, texts), predict(merged, texts), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_an_adapter_of_a_revision_says_which(cache: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """PEFT loads the base by the adapter's settings, and so does the code of its card."""
    run = train(load_recipe(write_recipe(), [AT_V2, "training.epochs=1"]), tmp_path / "run")
    for name in ("adapter", "lora"):
        folder = run.folder / name
        assert json.loads((folder / "adapter_config.json").read_text())["revision"] == "v2", name
        (load,) = [line for line in (folder / card.CARD).read_text().splitlines() if ".from_pretrained(base" in line]
        assert "revision='v2'" in load, name
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(run.folder / "lora", num_labels=2)
    assert loaded.config.hidden_size == 24
