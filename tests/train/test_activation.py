"""`aurora sigma`'s record of a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aurora_lora.deploy.hidden import hidden_values
from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.measuring import learned_activation
from aurora_lora.train.run import load_trained_model, make_trainer

WriteRecipe = Callable[..., Path]
LAYER = "bert.encoder.layer.0.attention.self.query"
SHORT = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-2, "threads": 1}


@pytest.mark.parametrize("start", ["default", "aligned"])
def test_curves_and_histogram(write_recipe: WriteRecipe, tmp_path: Path, start: str) -> None:
    method = {"name": "aurora-paper", "r": 3, "target_modules": ["query", "value"], "start": start}  # H is random
    recipe = load_recipe(write_recipe(method=method, training=SHORT))
    train(recipe, tmp_path / "run")
    torch.manual_seed(5)  # of no consequence
    assert learned_activation(load_run(tmp_path / "run"), examples=4)["examples"] == 4
    record = learned_activation(load_run(tmp_path / "run"))
    assert (record["examples"], record["train_form"]) == (32, "dynamic")
    assert record["layers"][0]["layer"] == LAYER
    assert len(record["layers"]) == 4
    first = record["layers"][0]
    assert len(first["channels"]) == 3
    channel = first["channels"][1]
    assert sum(channel["counts"]) == first["vectors"]
    assert len(channel["edges"]) == len(channel["counts"]) + 1
    assert (channel["edges"][0], channel["edges"][-1]) == (channel["z"][0], channel["z"][-1])
    trainer, data = make_trainer(recipe, tmp_path / "new")  # as the run began
    trained, _ = load_trained_model(load_run(tmp_path / "run"))
    z = hidden_values(trained, data.calibration_batches(recipe.calibration))[LAYER, "default"]
    for place, one in enumerate(first["channels"]):
        ends = (z[:, place].min().item(), z[:, place].max().item())
        assert (one["z"][0], one["z"][-1]) == pytest.approx(ends, rel=1e-3)
    inputs = torch.zeros(len(channel["z"]), 3)
    inputs[:, 1] = torch.tensor(channel["z"])
    for model, curve in ((trainer.model, channel["before"]), (trained, channel["after"])):
        layer = model.get_submodule(f"base_model.model.{LAYER}")
        expected = layer.sigma("default", inputs)[:, 1].detach().numpy()
        assert curve == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert np.abs(np.subtract(channel["before"], channel["after"])).max() > 1e-3


def test_runs_without_a_sigma(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    lora = {"name": "lora", "r": 2, "target_modules": ["query", "value"]}
    train(load_recipe(write_recipe(method=lora, training=SHORT)), tmp_path / "lora")
    with pytest.raises(UserError, match="is a run of lora: only AuroRA"):
        learned_activation(load_run(tmp_path / "lora"))
