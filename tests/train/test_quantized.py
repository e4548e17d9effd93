"""`aurora merge --quantization` of whole runs, and `aurora gap` of any adapter's folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.methods import METHODS
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


@pytest.mark.parametrize(("name", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
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
    assert kinds == ["Linear", kind]  # the head is not quantised
    again = aurora("merge", run, "-o", merged, "--quantization", name, "--round-by-inputs")
    assert "already holds this merge" in again.stdout
    other = aurora("merge", run, "-o", merged, "--quantization", name)
    assert (other.exit_code, "--overwrite replaces it" in other.stderr) == (2, True)
    nearest = aurora("merge", run, "-o", merged, "--quantization", name, "--overwrite")
    assert nearest.exit_code == 0, nearest.output
    assert f"a plain Transformers model in {name}, calibrated form" in nearest.stdout


@pytest.mark.parametrize("round_by_inputs", [True, False])
@pytest.mark.parametrize(
    ("method", "ways"),
    [("adalora", []), ("hira", [True, False]), ("fourierft", [True])],
)
def test_methods_that_peft_cannot_merge_into_a_quantised_base(
    write_recipe: Callable[..., Path], tmp_path: Path, method: str, ways: list[bool], round_by_inputs: bool
) -> None:
    options = {"adalora": {"tinit": 1, "tfinal": 1}, "fourierft": {"n_frequency": 10}}.get(method, {})
    recipe = write_recipe(method={"name": method, "target_modules": ["query"], **options})
    folder = train(load_recipe(recipe), tmp_path / "run").folder
    wanted = ["--round-by-inputs"] if round_by_inputs else []
    done = aurora("merge", folder, "-o", tmp_path / "merged", "--quantization", "nf4", *wanted)
    assert (done.exit_code == 0) == (round_by_inputs in ways) == (tmp_path / "merged").exists(), done.output
    if done.exit_code:
        assert f"a run of {method}, which PEFT cannot merge so into a quantised base" in done.stderr
        assert ("`--round-by-inputs`" in done.stderr or "--round-by-inputs" in done.stderr) == bool(ways)


def test_mistakes_of_quantised_merges(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> str:
        done = aurora("merge", run, "-o", tmp_path / "merged", *args)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert not (tmp_path / "merged").exists()
        return str(done.stderr)

    assert "quantization 'nf3' is not one of nf4, fp4, int8" in refused("--quantization", "nf3")
    assert "--round-by-inputs goes with --quantization" in refused("--round-by-inputs")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install 'aurora-lora[quantized]'" in refused("--quantization", "nf4")


def test_the_gap_of_a_run_with_merges(run: Path, tmp_path: Path) -> None:
    done = aurora("gap", run, "--quantization", "nf4", "-o", tmp_path / "gap")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    names = {path.name for path in (tmp_path / "gap").iterdir()}
    assert names == {"gap.json", "gap.png", "gap.svg", "merges.png", "merges.svg"}
    record = json.loads((tmp_path / "gap" / "gap.json").read_text())
    assert [entry["form"] for entry in record["end_to_end"]] == ["dynamic", "static", "calibrated"]
    assert [merge["merge"] for merge in record["merges"]] == ["float32", "bfloat16", "nf4 nearest", "nf4 by inputs"]
    (run / "gap.json").write_text(json.dumps(record))
    try:
        page = aurora("report", run, "--html", tmp_path / "page.html")
        assert page.exit_code == 0, page.output
        assert "What merges lose" in (tmp_path / "page.html").read_text()
    finally:
        (run / "gap.json").unlink()


TEXTS = ["the film was warm", "a dull plot", "very funny actor and scene", "the plot was bad", "a good film", "slow"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny causal language model, and a LoRA for it."""
    folder = tmp_path_factory.mktemp("lm")
    base = tiny.save_language_model(folder / "base")
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "lora")
    return base, folder / "lora"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_the_gap_of_an_adapter(language_model: tuple[Path, Path], tmp_path: Path, ending: str) -> None:
    base, adapter = language_model
    file = tmp_path / f"texts.{ending}"
    lines = {"jsonl": [json.dumps({"said": text}) for text in TEXTS], "csv": ["said,n", *(f"{t},1" for t in TEXTS)]}
    file.write_text("\n".join(lines.get(ending, TEXTS)) + "\n")
    column = () if ending == "txt" else ("--column", "said")
    before = {path.name for path in adapter.iterdir()}
    done = aurora("gap", adapter, "--model", base, "--data", file, *column, "--json")
    assert done.exit_code == 0, done.output
    assert {path.name for path in adapter.iterdir()} == before
    record = json.loads(done.stdout)
    assert (record["texts"], record["calibration_texts"]) == (6, 0)
    assert [merge["merge"] for merge in record["merges"]] == ["float32", "bfloat16"]
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, n = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        n += ids.shape[1] - 1
    assert record["end_to_end"][0]["metric"]["nll"] == pytest.approx(total / n, rel=1e-4)


def test_quantised_merges_of_an_adapter_round_by_other_texts(language_model: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = language_model
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    done = aurora("gap", adapter, "--model", base, "--data", file, "--quantization", "int8", "-o", tmp_path / "gap")
    assert done.exit_code == 0, done.output
    assert "measured on 3 texts; merges by inputs round by 3 others" in done.stdout
    assert {path.name for path in (tmp_path / "gap").iterdir()} == {"gap.json", "merges.png", "merges.svg"}


def test_mistakes_of_the_gap_of_an_adapter(run: Path, language_model: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = language_model
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    (tmp_path / "empty.txt").write_text("\n\n")
    prompt = tmp_path / "prompt"
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(prompt)

    milora = tmp_path / "milora"
    method = METHODS["milora"].bind({"r": 2})
    method.save(method.apply(AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM"), milora)

    def refused(*args: object) -> str:
        done = aurora("gap", *args)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        return str(done.stderr)

    assert "--data FILE says on which texts" in refused(adapter)
    assert "none.txt' is no file" in refused(adapter, "--data", tmp_path / "none.txt")
    assert "has no column 'said' (it has text)" in refused(adapter, "--data", file, "--column", "said")
    assert "0 texts in column 'text'" in refused(adapter, "--data", tmp_path / "empty.txt")
    assert "is neither the folder of a run nor of an adapter" in refused(base, "--data", file)
    wide = tiny.save_language_model(tmp_path / "wide", width=64)
    assert "wide: size mismatch for base_model.model." in refused(adapter, "--model", wide, "--data", file)
    assert "which changes no layer" in refused(prompt, "--data", file)
    assert "belongs to a base weight that its run has changed" in refused(milora, "--data", file, "--model", base)
    for option in ("--data", "--column", "--encoding"):
        assert "go with the folder of an adapter, not with a run" in refused(run, option, file)
    for options in (["--split", "test"], ["--merges"]):
        assert "--split and --merges go with a run" in refused(adapter, "--data", file, *options)


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


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_trained_bias_is_merged_with_its_scale(write_recipe: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """PEFT's own merge into a quantised layer leaves the scale out."""
    model = tiny.save_model(tmp_path / "model", width=64)
    method = {"name": "lora", "r": 2, "lora_alpha": 16, "lora_bias": True, "target_modules": ["query"]}
    run = train(load_recipe(write_recipe(model=model, method=method)), tmp_path / "run").folder
    for output, options in (("exact", []), ("rounded", ["--quantization", name])):
        done = aurora("merge", run, "-o", tmp_path / output, *options)
        assert done.exit_code == 0, done.output
    exact, rounded = (load_file(tmp_path / one / "model.safetensors") for one in ("exact", "rounded"))
    biases = [key for key in exact if key.endswith("query.bias")]
    assert biases
    for key in biases:
        torch.testing.assert_close(rounded[key].float(), exact[key])


def test_what_merges_round_by_is_not_measured_on(run: Path) -> None:
    """Of the 64 training texts, 32 are the calibration's."""
    assert measuring.gap(run, split="train", quantizations="nf4").predictions == 32
