"""`aurora merge --quantization` of whole runs, and what such merges lose."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.train import load_run, measuring, recipe_files
from aurora_lora.train.predicting import load_predictor
from aurora_lora.train.recipe import load_recipe
from aurora_lora.train.run import make_trainer, train

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    recipe = folder / "recipe.yaml"
    model = tiny.save_model(folder / "model", width=64)  # one block of 4 bits, as bitsandbytes wants it on a CPU
    recipe.write_text(recipe_files.dump(tiny.recipe(model)), encoding="utf-8")
    return train(load_recipe(recipe), folder / "run").folder


def aurora(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


SCRIPT = """
import json, sys
sys.modules["aurora_lora"] = None  # importing it now raises ImportError
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], device_map={"": "cpu"}).eval()
inputs = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt")
with torch.no_grad():
    found = model(**inputs).logits.softmax(-1).max().item()
kinds = sorted({type(module).__name__ for module in model.modules() if "inear" in type(module).__name__})
print(json.dumps([found, kinds]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt"), ("w8a16", "Linear")])
def test_a_merge_into_a_quantised_base(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    merged = tmp_path / "merged"
    done = aurora("merge", run, "-o", merged, "--quantization", name, "--round-by-inputs", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["quantization"], record["round_by_inputs"], record["form"]) == (name, True, "calibrated")
    assert all(0 < layer["by_inputs"] <= layer["nearest"] for layer in record["rounding"]["layers"])
    answer = json.loads(aurora("predict", merged, "a warm film", "--json").stdout)[0]
    plain = subprocess.run([sys.executable, "-c", SCRIPT, str(merged), "a warm film"], capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr
    probability, kinds = json.loads(plain.stdout)
    assert probability == pytest.approx(answer["probability"], abs=1e-5)
    assert kinds == sorted({"Linear", kind})  # the head is not quantised
    other = aurora("merge", run, "-o", merged, "--quantization", name)
    assert (other.exit_code, "--overwrite replaces it" in other.stderr) == (2, True)
    nearest = aurora("merge", run, "-o", merged, "--quantization", name, "--overwrite")
    assert nearest.exit_code == 0, nearest.output
    assert f"a plain Transformers model in {name}, calibrated form" in nearest.stdout


@pytest.mark.parametrize(
    ("method", "options", "ways"),
    [("adalora", {"tinit": 1, "tfinal": 1}, []), ("fourierft", {"n_frequency": 10}, [True])],
)
def test_methods_that_peft_cannot_merge_into_a_quantised_base(
    write_recipe: Callable[..., Path], tmp_path: Path, method: str, options: dict[str, Any], ways: list[bool]
) -> None:
    recipe = write_recipe(method={"name": method, "target_modules": ["query"], **options})
    folder = train(load_recipe(recipe), tmp_path / "run").folder
    for by_inputs, wanted in ((False, []), (True, ["--round-by-inputs"])):
        done = aurora("merge", folder, "-o", tmp_path / "merged", "--quantization", "nf4", *wanted)
        assert (done.exit_code == 0) == (by_inputs in ways) == (tmp_path / "merged").exists(), done.output
        if done.exit_code:
            assert f"a run of {method}, which PEFT cannot merge so into a quantised base" in done.stderr


def test_the_gap_of_a_run_with_merges(run: Path, tmp_path: Path) -> None:
    done = aurora("gap", run, "--quantization", "nf4", "-o", tmp_path / "gap")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    names = {path.name for path in (tmp_path / "gap").iterdir()}
    assert names == {"gap.json", "gap.png", "gap.svg"}
    record = json.loads((tmp_path / "gap" / "gap.json").read_text())
    assert [entry["form"] for entry in record["end_to_end"]] == ["dynamic", "static", "calibrated"]
    assert [merge["merge"] for merge in record["merges"]] == ["float32", "bfloat16", "nf4 nearest", "nf4 by inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_run_on_a_model_that_is_stored_quantised(run: Path, tmp_path: Path, name: str) -> None:
    """It is trained on as it is, and merged into its dequantised weights: plain Transformers could not save it."""
    stored = tmp_path / "stored"
    assert aurora("merge", run, "-o", stored, "--quantization", name, "--round-by-inputs").exit_code == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_files.dump(tiny.recipe(stored)), encoding="utf-8")
    trained = train(load_recipe(recipe, ["training.epochs=1"]), tmp_path / "run").folder
    refused = aurora("merge", trained, "-o", tmp_path / "merged", "--quantization", "nf4")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "is stored quantised (bitsandbytes): merge without --quantization" in refused.stderr
    done = aurora("merge", trained, "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    found, expected = (
        json.loads(aurora("predict", folder, "a warm film", "--json").stdout)[0]["probability"]
        for folder in (tmp_path / "merged", trained)
    )
    assert found == pytest.approx(expected, abs=1e-4 if name == "nf4" else 2e-2)  # int8 rounds the inputs, too


def test_a_run_on_a_quantised_base_answers_in_a_dtype(tmp_path: Path) -> None:
    """What is not quantised is in it, and what is computes in it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_files.dump(tiny.recipe(tiny.save_model(tmp_path / "model", width=64))), encoding="utf-8")
    changes = ["model={name: " + str(tmp_path / "model") + ", quantization: nf4}", "training.epochs=1"]
    folder = train(load_recipe(recipe, changes), tmp_path / "run").folder
    exact, low = (load_predictor(folder, dtype=dtype) for dtype in (None, "bfloat16"))
    (layer,) = {type(one): one for one in low.model.modules() if hasattr(one, "compute_dtype")}.values()
    assert layer.compute_dtype == torch.bfloat16
    assert low.model.get_input_embeddings().weight.dtype == torch.bfloat16
    for one, other in zip(exact.answers(["a warm film"]), low.answers(["a warm film"]), strict=True):
        assert other["probability"] == pytest.approx(one["probability"], abs=3e-2)


def test_the_gap_of_a_run_is_in_float32_and_rounds_by_its_calibration_inputs(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(), ["training.precision=bf16", "training.epochs=1"])
    run = load_run(train(recipe, tmp_path / "run").folder)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(measuring, "merge_gap", lambda model, _, **more: seen.update(more, model=model))
    measuring.gap(run)
    assert not seen.keys() & {"rounding_batches"}  # nothing is rounded by inputs
    measuring.gap(run, quantizations=["nf4"])
    assert {weight.dtype for weight in seen["model"].parameters()} == {torch.float32}
    _, data = make_trainer(recipe, tmp_path / "nothing", (), run.folder / "adapter")
    expected = data.calibration_batches(recipe.calibration)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(seen["rounding_batches"], expected, strict=True)
    )


def test_what_merges_round_by_is_not_measured_on(run: Path) -> None:
    """Of the 64 training texts, 32 are the calibration's."""
    assert measuring.gap(run, split="train", quantizations="nf4").predictions == 32
