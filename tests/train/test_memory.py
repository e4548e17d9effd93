"""What a run keeps its weights in, on every kind of task, and what is made of it afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aurora_lora.methods import METHODS
from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.kinds import kind_of
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.predicting import predict
from aurora_lora.train.run import make_trainer

SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "fourierft": {"n_frequency": 60, "scaling": 10.0},
    "vera": {"r": 16},
    "adapter-d": {"r": 4, "drop_layers": 1},
}
OWN_TARGETS = ("adapter-h", "adapter-p", "adapter-d", "bitfit", "linear-probe", "full")

WriteRecipe = Callable[..., Path]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_language_model(tmp_path_factory.mktemp("language_model"))


def questions(model: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "model": model,
        "task": {"name": "tiny-questions", "train_size": 32, "validation_size": 16, "test_size": 16},
        "method": {"name": "aurora", "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 1,
            "batch_size": 8,
            "eval_batch_size": 8,
            "learning_rate": 2e-2,
            "threads": 1,
            "precision": "bf16",
        },
    }
    return {**values, **changes}


def options(name: str, targets: list[str]) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {}), **({} if name in OWN_TARGETS else {"target_modules": targets})}


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("aurora-")])
def test_frozen_weights_have_the_precision_and_trained_ones_float32(
    write_recipe: WriteRecipe, tmp_path: Path, name: str
) -> None:
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "threads": 1, "precision": "bf16"}
    recipe = load_recipe(write_recipe(method=options(name, ["query", "value"]), training=training))
    trainer, data = make_trainer(recipe, tmp_path)
    trained, frozen = set(), set()
    for parameter_name, parameter in trainer.model.named_parameters():
        if ".original_module." not in parameter_name and parameter.is_floating_point():
            (trained if parameter.requires_grad else frozen).add(parameter.dtype)
    assert trained == {torch.float32}
    if name == "vera":
        frozen.discard(torch.float32)
    assert frozen == ({torch.float32} if name == "bitfit" else set() if name == "full" else {torch.bfloat16})
    loss = kind_of(data.task).loss(trainer.recipe, trainer.model, data.training_batches(1.0, 8)[0])
    loss.backward()
    gradients = {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None}
    assert gradients == {torch.float32}


@pytest.mark.parametrize("name", ["aurora", "lora", "pissa", "milora", "moslora"])
def test_a_merge_rounds_no_weight(write_recipe: WriteRecipe, language_model: Path, tmp_path: Path, name: str) -> None:
    """The base is stored in float32: what the run did not adapt is written as it is stored."""
    method = options(name, ["q_proj", "v_proj"])
    run = train(load_recipe(write_recipe(**questions(language_model, method=method))), tmp_path / "run")
    merged = merge(load_run(run.folder), tmp_path / "merged")
    base = load_file(language_model / "model.safetensors")
    written = load_file(merged.folder / "model.safetensors")
    adapted = [key for key in base if "q_proj" in key or "v_proj" in key]
    for key, value in base.items():
        assert torch.equal(written[key], value) == (key not in adapted)
    # nor is it another function: the trained weights belong to the start that the run had
    texts = ["film : warm plot", "dull film"]
    assert predict(run.folder, texts) == predict(merged.folder, texts)
    scores = run.result["metric"]["by_form"][load_run(run.folder).deployed_form]
    again = evaluate(load_run(run.folder).in_precision("fp32"), forms=[load_run(run.folder).deployed_form])
    assert again[load_run(run.folder).deployed_form]["nll"] == pytest.approx(scores["nll"], rel=2e-2)


def test_a_start_is_taken_from_the_exact_weights(
    write_recipe: WriteRecipe, language_model: Path, tmp_path: Path
) -> None:
    """MiLoRA's, from the smallest singular values, which rounding would change altogether."""
    stored = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.bfloat16).save_pretrained(stored)
    for file in language_model.glob("*token*"):
        (stored / file.name).write_bytes(file.read_bytes())
    method = {"name": "milora", "r": 4, "target_modules": ["q_proj"]}
    for model in (language_model, stored):
        trainer, _ = make_trainer(load_recipe(write_recipe(**questions(model, method=method))), tmp_path / model.name)
        layer: Any = trainer.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        W0 = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float()
        start = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(torch.linalg.svdvals(start)[:4], torch.linalg.svdvals(W0)[-4:])
        torch.testing.assert_close(layer.base_layer.weight, (W0 - start).bfloat16())


# ---------------------------------------------------------------- gradient checkpointing


def gradients(recipe_path: Path, tmp_path: Path, checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a batch, and how many bytes are kept for its backward pass."""
    recipe = load_recipe(recipe_path, [f"training.gradient_checkpointing={str(checkpointing).lower()}"])
    trainer, data = make_trainer(recipe, tmp_path)
    model, kept = trainer.model.train(), 0
    known = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if value.data_ptr() in known else value.nbytes
        return value

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = kind_of(data.task).loss(trainer.recipe, model, data.training_batches(1.0, 8)[0])
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("name", ["aurora", "lora", "dylora", "adapter-h", "full"])
def test_checkpointing_changes_memory_and_no_gradient(write_recipe: WriteRecipe, tmp_path: Path, name: str) -> None:
    path = write_recipe(method=options(name, ["query", "value"]))
    (plain, much), (checkpointed, little) = (gradients(path, tmp_path / "none", wanted) for wanted in (False, True))
    assert plain.keys() == checkpointed.keys()
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, msg=lambda text, p=parameter: f"{p}: {text}")
    assert little < 0.6 * much
