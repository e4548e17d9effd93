"""Whole runs of the methods with hooks or adapted modules: scored again, merged or refused, resumed after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aurora_lora.errors import FormError
from aurora_lora.train import deploying, load_recipe, load_run, recipe_files, train
from aurora_lora.train.deploying import export, merge
from aurora_lora.train.measuring import evaluate, gap
from aurora_lora.train.predicting import predict

Aurora = Callable[..., list[dict[str, Any]]]
WriteRecipe = Callable[..., Path]
TARGETS = {"target_modules": ["query", "value"]}
METHODS: list[dict[str, Any]] = [
    {"name": "lora", "r": 2, **TARGETS},
    {"name": "full"},
    {"name": "linear-probe"},
    {"name": "adalora", "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4, **TARGETS},
    {"name": "dylora", "r": 4, "eval_rank": 2, **TARGETS},
    {"name": "lora-drop", "r": 4, "threshold": 0.6, "sample_share": 0.5, **TARGETS},
    {"name": "milora", "r": 4, **TARGETS},
    {"name": "pissa", "r": 4, **TARGETS},
    {"name": "lora-ga", "r": 4, **TARGETS},
    {"name": "hira", "r": 4, **TARGETS},
    {"name": "bitfit"},
    {"name": "loda", "r": 4, **TARGETS},
    {"name": "adapter-h", "r": 4},
]
IDS = [method["name"] for method in METHODS]
QUESTIONS = {"name": "tiny-questions", "train_size": 48, "validation_size": 16, "test_size": 16}
Q_V = {"target_modules": ["q_proj", "v_proj"]}
OF_LANGUAGE_MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"name": "adalora", "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4, **Q_V}),
    ("gpt2", {"name": "lora-drop", "r": 4, "threshold": 0.6, "sample_share": 0.5}),
    ("gpt2", {"name": "dylora", "r": 4}),
    ("gpt2", {"name": "milora", "r": 4}),
    ("llama", {"name": "fourierft", "n_frequency": 60, "scaling": 10.0}),
    ("llama", {"name": "neat", "r": 4}),
    ("gpt2", {"name": "bitfit"}),
    ("gpt2", {"name": "loda", "r": 4}),
    ("llama", {"name": "adapter-p", "r": 4}),
]


def weights(folder: Path) -> dict[str, bytes]:
    """Everything that was trained, as bytes."""
    return {
        f"{path.name}:{name}": value.numpy().tobytes()
        for path in sorted((folder / "adapter").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_run(
    write_recipe: WriteRecipe, tmp_path: Path, method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(load_recipe(write_recipe(method=method)), tmp_path / "run")
    again = load_run(run.folder)
    assert run.result["method"] == method["name"]
    assert (run.result["params"]["adapter"] > 0) == (method["name"] != "linear-probe")
    assert evaluate(again, forms=["merged"]) == run.result["metric"]["by_form"]
    if method["name"] in ("loda", "adapter-h"):
        monkeypatch.setattr(deploying, "load_trained_model", None)  # the base model is not loaded for it
        with pytest.raises(FormError, match=f"{method['name']} cannot be merged: "):
            merge(again, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    merged = merge(again, tmp_path / "merged")
    answers = [predict(folder, ["good film", "bad film"]) for folder in (run.folder, merged.folder)]
    for one, other in zip(*answers, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), OF_LANGUAGE_MODELS, ids=[m["name"] for _, m in OF_LANGUAGE_MODELS])
def test_run_of_a_language_model(write_recipe: WriteRecipe, tmp_path: Path, kind: str, method: dict[str, Any]) -> None:
    lm = tiny.save_language_model(tmp_path / "lm", kind, tied=True)
    run = train(load_recipe(write_recipe(model=lm, task=QUESTIONS, method=method)), tmp_path / "run")
    again = load_run(run.folder)
    assert run.result["params"]["adapter"] > 0
    assert run.result["params"]["head"] == 0
    assert run.result["epochs"][-1]["train_loss"] < run.result["epochs"][0]["train_loss"]
    assert evaluate(again, forms=["merged"]) == run.result["metric"]["by_form"]
    if method["name"] in ("loda", "adapter-p"):
        with pytest.raises(FormError, match=f"{method['name']} cannot be merged: "):
            merge(again, tmp_path / "merged")
        return
    merged = merge(again, tmp_path / "merged").folder
    config = AutoModelForCausalLM.from_pretrained(merged).config
    assert config.tie_word_embeddings
    assert predict(merged, ["the film was good"]) == predict(run.folder, ["the film was good"])


@pytest.mark.slow
def test_killed_and_resumed(aurora: Aurora, model: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: the weights are those of an uninterrupted run, to the last bit."""
    training = {"epochs": 2, "batch_size": 16, "eval_batch_size": 32, "learning_rate": 2e-2, "threads": 1}
    orders: dict[str, dict[str, Any]] = {}
    for method in METHODS[3:9]:
        method = {**method, "tfinal": 2} if method["name"] == "adalora" else method
        path = tmp_path / f"{method['name']}.yaml"
        path.write_text(recipe_files.dump(tiny.recipe(model, method=method, training=training)), encoding="utf-8")
        orders[method["name"]] = {"args": ["train", str(path), "-o"]}

    def run(kind: str, kill_at: dict[str, int]) -> dict[str, dict[str, Any]]:
        folders = {name: tmp_path / f"{name}-{kind}" for name in orders}
        given = [{"args": [*orders[name]["args"], str(f)], "folder": str(f)} for name, f in folders.items()]
        for name, order in zip(orders, given, strict=True):
            order |= {"kill_at": kill_at[name]} if kill_at else {}
        return dict(zip(orders, aurora(*given), strict=True))

    whole = run("whole", {})
    assert all(answer["status"] == 0 for answer in whole.values()), whole
    killed = run("broken", {name: int(0.6 * answer["events"]) for name, answer in whole.items()})
    assert all(answer["status"] == -9 for answer in killed.values())
    assert all(list((tmp_path / f"{name}-broken" / "checkpoints").glob("checkpoint-*")) for name in orders)
    done = run("broken", {})
    assert all(answer["status"] == 0 for answer in done.values()), done
    for name in orders:
        one, other = (tmp_path / f"{name}-{kind}" for kind in ("whole", "broken"))
        assert weights(one) == weights(other), name
        scores = [json.loads((folder / "result.json").read_text())["metric"] for folder in (one, other)]
        assert scores[0] == scores[1]


def test_preset_of_aurora(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """It is AuroRA in all respects: three forms, a plain LoRA beside it, a gap and an export."""
    run = train(load_recipe(write_recipe(method={"name": "aurora-paper-no-l", **TARGETS})), tmp_path / "run")
    assert list(run.result["metric"]["by_form"]) == ["dynamic", "static", "calibrated"]
    assert run.result["metric"]["selected_by"]["form"] == "static"
    assert run.result["recipe"]["method"]["spline"] is None
    assert (run.folder / "lora" / "adapter_config.json").is_file()
    trained = load_run(run.folder)
    assert gap(trained, examples=8).predictions == 8
    assert export(trained, tmp_path / "lora")[1] == "static"
