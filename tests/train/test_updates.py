"""`training.save_updates`: the update of the weights that each epoch ends with, whatever happens on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.publish import saved_updates
from aurora_lora.train.run import load_trained_model

WriteRecipe = Callable[..., Path]
TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-2, "threads": 1, "save_updates": True}
TARGETS = {"r": 2, "target_modules": ["query", "value"]}
METHODS: list[dict[str, Any]] = [
    {"name": "aurora", **TARGETS},
    {"name": "aurora-paper", **TARGETS},
    {"name": "lora", **TARGETS},
    {"name": "lora-ga", "r": 4, **TARGETS},
    {"name": "dylora", **TARGETS, "eval_rank": 1},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_the_last_update_is_what_a_merge_adds(
    write_recipe: WriteRecipe, tmp_path: Path, method: dict[str, Any]
) -> None:
    recipe = load_recipe(write_recipe(method=method, training=TRAINING))
    folder = tmp_path / "run"
    train(recipe, folder)
    files = saved_updates(folder / "updates")
    assert list(files) == [0, 1, 2]
    with safe_open(files[2], "pt") as file:
        assert file.metadata() == {"step": "8"}
    updates = {epoch: load_file(path) for epoch, path in files.items()}
    forms = {"aurora": ["calibrated", "static"], "aurora-paper": ["static"]}.get(method["name"], ["merged"])
    assert sorted({name.split("/")[0] for name in updates[0]}) == forms
    assert len(updates[0]) == len(forms) * 4 * 2  # two layers' query and value, two factors
    run = load_run(folder)
    best = round(run.result["metric"]["selected_by"]["epoch"])
    model, _ = load_trained_model(run)
    before = {path: module.weight.detach().clone() for path, module in base_layers(model).items()}
    merged = run.recipe.method.merge(model, run.deployed_form)
    for layer, weight in before.items():
        added = merged.get_submodule(layer).weight - weight
        left, right = (updates[best][f"{forms[0]}/{layer}/{side}"] for side in ("left", "right"))
        assert added.abs().max() > 1e-3
        torch.testing.assert_close(left @ right, added, rtol=1e-4, atol=1e-6)
        first = updates[0][f"{forms[0]}/{layer}/left"]
        assert first.any() == (method["name"] in ("lora-ga",))  # B starts at 0


def base_layers(model: torch.nn.Module) -> dict[str, Any]:
    found = {path: module for path, module in model.named_modules() if path.endswith(".base_layer")}
    return {path.removeprefix("base_model.model.").removesuffix(".base_layer"): m for path, m in found.items()}


def test_methods_without_such_an_update_are_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    for name in ("linear-probe", "dora"):
        method = {"name": name} if name == "linear-probe" else {"name": name, **TARGETS}
        recipe = load_recipe(write_recipe(method=method, training=TRAINING))
        with pytest.raises(UserError, match=f"training.save_updates: not with {name}: it has no low-rank update"):
            train(recipe, tmp_path / name)
