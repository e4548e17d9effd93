"""The model cards: their code is run as it stands, and their numbers are those of result.json."""

import importlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aurora_lora import set_form
from aurora_lora.data.models import MODELS, ModelSource
from aurora_lora.train import TrainedRun, card, load_recipe, load_run, train

WriteRecipe = Callable[..., Path]
TEXTS = ["the film was good and warm", "a dull plot"]


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Python blocks of a folder's card leave behind; they are run in that folder."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (folder / card.CARD).read_text(), re.DOTALL):
        exec(block, names)
    return names


@torch.no_grad()
def logits(model: Any, folder: Path) -> torch.Tensor:
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    scores: torch.Tensor = model(**batch).logits
    return scores


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return load_run(shutil.copytree(finished, tmp_path_factory.mktemp("cards") / "run"))


def test_code_of_the_adapters_card(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_code(run.folder / "adapter", monkeypatch)
    assert found["model"].peft_config["default"].calibrated
    assert found["labels"] == ("negative", "positive")
    merged = logits(found["merged"], run.folder / "adapter")
    # the export that the card's code writes is the one that training wrote
    file = "adapter_model.safetensors"
    one, other = (load_file(folder / "lora" / file) for folder in (run.folder, run.folder / "adapter"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    plain = run_code(run.folder / "lora", monkeypatch)["model"]
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(plain, run.folder / "adapter"), merged, rtol=0, atol=1e-5)


def test_what_the_adapters_card_says(run: TrainedRun, model: Path) -> None:
    written = ModelCard.load(run.folder / "adapter" / card.CARD)
    assert written.data.library_name == "peft"
    assert written.data.base_model == str(model)
    assert written.data.tags == ["aurora", "aurora-lora", f"base_model:adapter:{model}", "transformers"]
    assert written.data.pipeline_tag == "text-classification"
    assert "computes the calibrated form" in written.text
    assert "More Information Needed" not in written.text
    for form, name in (("dynamic", "trained (dynamic)"), ("calibrated", "calibrated merge, deployed")):
        scores = run.result["metric"]["by_form"][form]
        assert f"| {name} | {100 * scores['accuracy']:.1f} | {scores['nll']:.3f} |" in written.text
    assert "tiny-sentiment, 32 test examples" in written.text
    assert f"- PEFT {run.result['versions']['peft']}" in written.text
    assert "learning_rate: 0.02" in written.text
    # A, B, H and the splines of four layers, 16 by 16; the classifier's weights and biases
    counts = 4 * (2 * 32 + 2 * 2 + 2 * 8), 16 * 2 + 2
    assert "{} in the adapter and {} in the head".format(*counts) in written.text


def test_a_dynamic_run_has_no_lora_and_its_card_says_why(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(load_recipe(write_recipe(), ["method.eval_form=dynamic"]), tmp_path / "run")
    assert not (run.folder / "lora").exists()
    text = (run.folder / "adapter" / card.CARD).read_text()
    assert "There is no plain LoRA beside this folder: `eval()` computes the dynamic form" in text
    found = run_code(run.folder / "adapter", monkeypatch)  # switches to the calibrated form, and merges that
    fresh = run_code_of_loading(run.folder / "adapter")
    set_form(fresh, "calibrated")
    merged = logits(found["merged"], run.folder / "adapter")
    torch.testing.assert_close(logits(fresh, run.folder / "adapter"), merged, rtol=0, atol=1e-5)


def run_code_of_loading(folder: Path) -> Any:
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / card.CARD).read_text(), re.DOTALL)[0], names)
    return names["model"]


@pytest.mark.slow
def test_static_training_needs_no_calibration(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    run = train(load_recipe(write_recipe(), ["method.train_form=static"]), tmp_path / "run")
    assert load_file(run.folder / "lora" / "adapter_model.safetensors")
    assert "computes the static form" in (run.folder / "adapter" / card.CARD).read_text()


def test_a_lora_run_is_one_already(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"name": "lora", "r": 2, "target_modules": ["query", "value"]}
    run = train(load_recipe(write_recipe(method=method)), tmp_path / "run")
    assert not (run.folder / "lora").exists()
    assert "import aurora_lora" not in (run.folder / "adapter" / card.CARD).read_text()
    assert run_code(run.folder / "adapter", monkeypatch)["model"].peft_config["default"].r == 2


@pytest.mark.parametrize(("name", "merges"), [("moslora", True), ("adapter-h", False)])
def test_methods_without_a_peft_adapter(write_recipe: WriteRecipe, tmp_path: Path, name: str, merges: bool) -> None:
    run = train(load_recipe(write_recipe(method=name)), tmp_path / "run")
    written = ModelCard.load(run.folder / "adapter" / card.CARD)
    assert written.data.library_name == "aurora-lora"
    assert ("aurora merge RUN" in written.text) == merges


@pytest.mark.slow
def test_an_adapter_that_cannot_be_exported_is_not_lost(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text model has such a layer, so the refusal is made up."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError("conv1 cannot be exported:\nit has groups.")

    monkeypatch.setattr(importlib.import_module("aurora_lora.train.run"), "export_lora", refuse)
    run = train(load_recipe(write_recipe()), tmp_path / "run")
    assert not list(run.folder.glob("*lora*"))
    assert (
        "beside this folder: conv1 cannot be exported: it has groups."
        in (run.folder / "adapter" / card.CARD).read_text()
    )


@pytest.mark.parametrize("gguf_file", [None, "weights.Q4_1.gguf"])
def test_a_packaged_base_is_named_for_other_machines(
    write_recipe: WriteRecipe, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_file: str | None
) -> None:
    """The cache folder, where it was loaded from, means nothing elsewhere; a GGUF file rounds the hub's weights."""
    packaged = MODELS["minilm-l6"]
    assert isinstance(packaged, ModelSource)
    monkeypatch.setitem(MODELS, "minilm-l6", replace(packaged, gguf_file=gguf_file))
    for module in ("train.models", "data.models"):
        monkeypatch.setattr(f"aurora_lora.{module}.resolve_model", lambda name: str(model))
    run = train(load_recipe(write_recipe(model="minilm-l6")), tmp_path / "run")
    for folder in ("adapter", "lora"):
        written = ModelCard.load(run.folder / folder / card.CARD)
        assert written.data.base_model == MODELS["minilm-l6"].hub_id
        assert str(model) not in str(written)
        settings = json.loads((run.folder / folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == MODELS["minilm-l6"].hub_id
        assert settings["modules_to_save"] == ["classifier", "score"]
        assert (run.folder / folder / "tokenizer.json").is_file()
    assert run_code(run.folder / "adapter", monkeypatch)["base"] == str(model)
    code = (run.folder / "lora" / card.CARD).read_text()
    assert "base = 'sentence-transformers/all-MiniLM-L6-v2'" in code
    assert AutoModelForSequenceClassification.__name__ in code
    told = "weights of `weights.Q4_1.gguf`, which rounds those of sentence-transformers/all-MiniLM-L6-v2"
    assert (told in code) == (gguf_file is not None)
    assert told not in (run.folder / "adapter" / card.CARD).read_text()  # which loads the package's
