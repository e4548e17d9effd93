"""Which weights a pretrained model may be loaded from, and what becomes of those that are not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    TrainerCallback,
)

from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.run import load_trained_model


def test_texts_are_cut_at_their_end_whatever_the_tokenizer_says(model: Path, tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(model, truncation_side="left").save_pretrained(tmp_path)
    cut = load_tokenizer(str(tmp_path))("a film of a film fine good", truncation=True, max_length=4)["input_ids"]
    whole = load_tokenizer(str(tmp_path))("a film of a film fine good")["input_ids"]
    assert cut[:3] == whole[:3]


def test_weights_that_are_stored_as_integers_are_refused(
    write_recipe: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file({**weights, name: weights[name].int()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name} is stored as I32, which is no floating point"):
        train(load_recipe(write_recipe(model=str(folder))), tmp_path / "run")


def as_pickle(folder: Path) -> Path:
    """The folder, with its weights as older checkpoints have them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "optimizer.pt")
    return folder


def test_weights_that_are_a_pickle_are_refused_with_the_way_to_convert_them(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """By a class that neither loses weights nor adds a head at random; what it writes can be trained on."""
    folder = tiny.save_model(tmp_path / "old")
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(folder)  # without a pooler
    exact = load_file(folder / "model.safetensors")
    recipe = load_recipe(write_recipe(model=str(as_pickle(folder))), ["training.epochs=1"])
    with pytest.raises(UserError) as refused:
        train(recipe, tmp_path / "run")
    said = str(refused.value)
    assert said.startswith(f"model: '{folder}' cannot be loaded: pytorch_model.bin is a pickle, which can run code: ")
    assert f'BertForMaskedLM.from_pretrained("{folder}").save_pretrained("FOLDER")' in said
    assert "use_safetensors" not in said
    BertForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "new")
    converted = load_file(tmp_path / "new" / "model.safetensors")
    assert exact.keys() == converted.keys()
    assert all(torch.equal(value, converted[name]) for name, value in exact.items())


def test_a_body_that_does_not_fit_its_config_is_refused(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Only a head is replaced: anything else would be trained from random weights."""
    model = tiny.save_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(UserError, match=r"cannot be loaded: its config does not fit its weights: .*intermediate"):
        train(load_recipe(write_recipe(model=model)), tmp_path / "run")


@pytest.fixture
def no_pooler(tmp_path: Path) -> Path:
    """As `BertForMaskedLM` saves it."""
    model = tiny.save_model(tmp_path / "base")
    BertForMaskedLM(BertConfig.from_pretrained(model)).save_pretrained(model)
    return model


@pytest.mark.parametrize(
    "method",
    [
        {"name": "aurora"},
        {"name": "lora", "modules_to_save": ["pooler"]},
        {"name": "loran"},
    ],
    ids=str,
)
def test_a_pooler_without_weights_is_trained_and_saved_as_the_head_is(
    write_recipe: Callable[..., Path], no_pooler: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    """It used to be random in training and, otherwise, in whatever loaded the adapter."""
    told = []
    teller = TrainerCallback()
    teller.say = told.extend  # type: ignore[attr-defined]
    recipe = load_recipe(write_recipe(model=str(no_pooler), method=method), ["training.epochs=1"])
    run = load_run(train(recipe, tmp_path / "run", make_callbacks=lambda: [teller]).folder)
    assert told == [
        f"{no_pooler} has no weights for bert.pooler.dense: it starts at random, and is trained and saved with the head"
    ]
    assert run.result["params"]["head"] == 16 * 16 + 16 + 2 * 16 + 2

    def logits(model: Any) -> torch.Tensor:
        batch = {"input_ids": torch.arange(4, 12).view(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
        with torch.no_grad():
            return model.to("cpu").eval()(**batch).logits

    found = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        model, _ = load_trained_model(run)
        with run.recipe.method.using(model, run.deployed_form):
            found.append(logits(model))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(logits(run.recipe.method.merge(model, run.deployed_form)), found[0])


def _without(model: Path, part: str, folder: Path) -> Path:
    """A copy of a model without the weights whose names have this part."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    left = {name: value for name, value in weights.items() if part not in name}
    assert 0 < len(left) < len(weights)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_other_weights_that_a_checkpoint_lacks_are_refused(
    write_recipe: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    base = _without(model, "layer.1.output.dense", tmp_path / "base")
    with pytest.raises(
        UserError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense, which would be random"
    ):
        train(load_recipe(write_recipe(model=str(base))), tmp_path / "run")
