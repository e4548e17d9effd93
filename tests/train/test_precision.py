"""The dtype that a run or a model answers in, and that a merge is written in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import ArgumentError, NotFiniteError
from aurora_lora.methods.parameters import is_head
from aurora_lora.train import TrainedRun, deploying, load_recipe, load_run, predicting, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.predicting import load_predictor, predict

WriteRecipe = Callable[..., Path]
TEXTS = ["a warm film", "a dull plot", "the scene was very slow and bad"]
LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
METHODS: dict[str, dict[str, Any]] = {
    "aurora": {"target_modules": ["query", "value"]},
    "pissa": {"r": 2, "target_modules": ["query", "value"]},
    "loran": {"target_modules": ["query", "value"]},
    "bitfit": {},
    "full": {},
}


@pytest.fixture
def run(write_recipe: WriteRecipe, tmp_path: Path) -> TrainedRun:
    return train(load_recipe(write_recipe(), ["training.epochs=1"]), tmp_path / "run")


def asked(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def dtypes(model: nn.Module, *, head: bool) -> set[torch.dtype]:
    """Of a model's floating-point parameters, without the copies of the untrained head."""
    named = {name: p for name, p in model.named_parameters() if ".original_module." not in name}
    return {p.dtype for name, p in named.items() if is_head(model, name) == head}


# ---------------------------------------------------------------- answers


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", LOW)
def test_a_run_answers_in_a_dtype(write_recipe: WriteRecipe, tmp_path: Path, method: str, dtype: str) -> None:
    recipe = load_recipe(write_recipe(method={"name": method, **METHODS[method]}), ["training.epochs=1"])
    folder = train(recipe, tmp_path / "run").folder
    predictor = load_predictor(folder, dtype=dtype)
    assert dtypes(predictor.model, head=True) == {torch.float32}  # what was trained is as it was
    adapter = {torch.float32} if method in ("aurora", "pissa", "loran") else set()
    assert dtypes(predictor.model, head=False) == {LOW[dtype], *adapter}
    exact, low = predict(folder, TEXTS), predictor.answers(TEXTS)
    assert low != exact
    for one, other in zip(exact, low, strict=True):
        assert other["label"] == one["label"] or one["probability"] < 0.52
        assert other["probability"] == pytest.approx(one["probability"], abs=3e-2)
    assert predict(folder, TEXTS, dtype="float32") == exact


def test_images_in_a_dtype(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Pixels are float32, which a plain model of another dtype need not take."""
    from PIL import Image

    recipe = load_recipe(write_recipe(**tiny.image_recipe(tiny.save_vit(tmp_path / "vit"))), ["training.epochs=1"])
    run = load_run(train(recipe, tmp_path / "run").folder)
    merge(run, tmp_path / "merged", dtype="bfloat16")
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), (200, 20, 30)).save(picture)
    (exact,) = predict(run.folder, [str(picture)])
    for folder, dtype in ((run.folder, "bfloat16"), (run.folder, "float16"), (tmp_path / "merged", None)):
        (low,) = predict(folder, [str(picture)], dtype=dtype)
        assert low["label"] == exact["label"]
        assert low["probability"] == pytest.approx(exact["probability"], abs=2e-2)


# ---------------------------------------------------------------- merges


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("method", ["aurora", "full"])
def test_a_merge_is_rounded_once(write_recipe: WriteRecipe, tmp_path: Path, method: str, dtype: str) -> None:
    """Also that of a run in bf16: the sum is that of the exact base."""
    recipe = write_recipe(method={"name": method, **METHODS[method]})
    run = load_run(
        train(load_recipe(recipe, ["training.precision=bf16", "training.epochs=1"]), tmp_path / "run").folder
    )
    exact, low = (merge(run, tmp_path / one, dtype=one).folder for one in ("float32", dtype))
    expected, written = (load_file(folder / "model.safetensors") for folder in (exact, low))
    assert expected.keys() == written.keys()
    for name, value in expected.items():
        assert value.dtype == torch.float32
        assert torch.equal(written[name], value.to(LOW[dtype])), name
    assert json.loads((low / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForSequenceClassification.from_pretrained(low).dtype == LOW[dtype]
    # it answers in the dtype that it has, as it did, and in another one where that is asked for
    assert next(load_predictor(low).model.parameters()).dtype == LOW[dtype]
    assert next(load_predictor(low, dtype="float32").model.parameters()).dtype == torch.float32
    assert predict(low, TEXTS) == predict(low, TEXTS, dtype=dtype) != predict(low, TEXTS, dtype="float32")


def test_dtypes_are_checked_before_anything_is_loaded(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (deploying, predicting):
        monkeypatch.setattr(module, "load_trained_model", lambda *_, **__: pytest.fail("it is loaded"))
    for command in (
        ("merge", run.folder, "-o", run.folder / "merged"),
        ("predict", run.folder, "a"),
        ("chat", run.folder),
    ):
        done = asked(*command, "--dtype", "bf16")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == "--dtype: 'bf16' is not allowed: it must be one of float32, bfloat16, float16\n"
    with pytest.raises(ArgumentError, match=r"^`dtype` 'float16' does not go with `quantization`: what is not quanti"):
        merge(load_run(run.folder), run.folder / "merged", dtype="float16", quantization="nf4")


def test_what_float16_cannot_hold_is_refused(run: TrainedRun, tmp_path: Path) -> None:
    merged = merge(load_run(run.folder), tmp_path / "merged").folder
    weights = load_file(merged / "model.safetensors")
    weights["classifier.bias"][0] = 70_000
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    assert predict(merged, TEXTS, dtype="bfloat16")
    with pytest.raises(
        NotFiniteError, match=r"classifier\.bias holds values .*float16, which ends at 65,504: bfloat16"
    ):
        predict(merged, TEXTS, dtype="float16")
