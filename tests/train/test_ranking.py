"""`aurora rank`: what a budget buys, as a table and a method that a recipe takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.report.measured import ranks_tables
from aurora_lora.train import load_recipe, recipe_files
from aurora_lora.train.measuring import ranking
from aurora_lora.train.probing import kept_start
from aurora_lora.train.recipe import validate
from aurora_lora.train.run import make_trainer

WriteRecipe = Callable[..., Path]
ALL = 2 * (4 * 32 + 2 * 48) + 32
"""Weights of rank 1 on every linear layer of the tiny model but its head."""


def test_it_is_what_a_run_with_that_budget_begins_with(model: Path, tmp_path: Path) -> None:
    method = {"name": "aurora", "skip": False, "r": 4, "alpha": 12, "target_modules": ["query"]}
    record = ranking(validate(tiny.recipe(model, method=method), "recipe"), 500)
    ranks = {layer["layer"]: layer["rank"] for layer in record["layers"]}
    assert sum(layer["direction"] for layer in record["layers"]) == ALL
    own = {"name": "aurora", "skip": False, "r": 4, "alpha": 12, "budget": 500}
    make_trainer(validate(tiny.recipe(model, method=own), "recipe"), tmp_path / "checkpoints")
    start = kept_start(tmp_path)
    assert start is not None
    assert start.ranks == {layer: rank for layer, rank in ranks.items() if rank}
    assert record["weights"] == sum(layer["rank"] * layer["direction"] for layer in record["layers"])
    squares = {layer["layer"]: [value**2 for value in layer["singular_values"]] for layer in record["layers"]}
    bought = sum(sum(squares[layer][:rank]) for layer, rank in ranks.items())
    assert record["energy"] == pytest.approx(bought / sum(map(sum, squares.values())))
    assert 0 < record["energy"] < 1
    assert record["left_out"] == ["target_modules"]
    assert record["exhausted"] == []
    assert record["without_gradient"] == []
    resolved = record["method"]
    assert resolved["skip"] is False
    assert resolved["alpha"] / resolved["r"] == 3
    assert "dropout" not in resolved  # as by default
    trainer, _ = make_trainer(validate(tiny.recipe(model, method=resolved), "recipe"), tmp_path / "other")
    inner: Any = trainer.model.get_base_model()  # type: ignore[operator]
    for layer, rank in ranks.items():
        module = inner.get_submodule(layer)
        assert (module.r["default"] if hasattr(module, "base_layer") else 0) == rank
        assert not rank or module.scaling["default"] == 3


def test_a_recipe_with_a_budget_keeps_to_its_modules(model: Path) -> None:
    method = {"name": "lora", "budget": 200, "target_modules": ["query", "value"]}
    record = ranking(validate(tiny.recipe(model, method=method), "recipe"))
    assert record["budget"] == 200
    assert {layer["kind"].rpartition(".")[2] for layer in record["layers"]} == {"query", "value"}


def test_the_tables_add_up(model: Path) -> None:
    method = {"name": "lora", "modules_to_save": ["pooler"]}
    record = ranking(validate(tiny.recipe(model, method=method), "recipe"), 10**6)
    assert "bert.pooler.dense" not in record["method"]["target_modules"]
    every = {layer["layer"]: layer["rank"] for layer in record["layers"]}
    assert sum(rank > 0 for rank in every.values()) == len(every) > 0
    for table in ranks_tables(record):
        assert sum(int(row[4].replace(",", "")) for row in table.rows) == record["weights"]
        assert sum(float(row[2]) for row in table.rows) == pytest.approx(100, abs=0.5)
        assert sum(len(row[3].split()) for row in table.rows) == len(every)


def test_layers_without_a_gradient_are_named(model: Path, write_recipe: WriteRecipe) -> None:
    """What attention finds reaches the loss through its output layer alone."""
    changed = AutoModelForSequenceClassification.from_pretrained(model)
    for block in changed.bert.encoder.layer:
        nn.init.zeros_(block.attention.output.dense.weight)
    folder = write_recipe().parent / "changed"
    changed.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    path = str(write_recipe(model=str(folder)))
    paths = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "key", "value")]
    done = CliRunner().invoke(cli.app, ["rank", path, "--budget", "500", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["without_gradient"] == paths
    shown = CliRunner().invoke(cli.app, ["rank", path, "--budget", "500"])
    names = ", ".join(paths[:3]) + " and 3 more"
    for stderr in (done.stderr, shown.stderr):
        assert f"6 layers got no gradient, and so no rank: {names}\n" in stderr


def test_the_command(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = str(write_recipe())
    done = CliRunner().invoke(cli.app, ["rank", path, "--budget", "500", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "of 500 weights, by kind of module" in done.stdout
    assert "method.target_modules: left out, the budget decides on modules and ranks" in done.stderr
    assert "no gradient" not in done.stderr
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    text = done.stdout[done.stdout.index("method:\n") :]
    (tmp_path / "method.yaml").write_text(text, encoding="utf-8")
    read = recipe_files.read(tmp_path / "method.yaml")
    record = json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert read["method"] == record["method"]
    load_recipe(write_recipe(method=read["method"]))
    shown = CliRunner().invoke(cli.app, ["rank", path, "--budget", "500", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["layers"] == record["layers"]


def test_mistakes(model: Path) -> None:
    with pytest.raises(UserError, match="budget=5 is not allowed: one direction takes 32 weights at least"):
        ranking(validate(tiny.recipe(model), "recipe"), 5)
