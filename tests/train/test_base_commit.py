"""The revision of a base model of the hub: where it is loaded from, and the commit that a run writes down."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_files
import pytest
import tiny
import torch
from aurora_lora.train.weights_digest import sampled_digest
from huggingface_hub import constants
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.dry_run import dry_run
from aurora_lora.lab.experiments.known import architecture
from aurora_lora.train import card, load_recipe, load_run, recipe_files, train
from aurora_lora.train.build import load_trained_model
from aurora_lora.train.evaluating import evaluate
from aurora_lora.train.merging import merge
from aurora_lora.train.models import (
    commit_of,
    load_base_model,
    load_tokenizer,
    stored_quantization,
    warn_of_another_commit,
)
from aurora_lora.train.predicting import predict
from aurora_lora.train.ranking import ranking
from aurora_lora.train.recipe import ModelSection, Recipe, validate
from aurora_lora.train.results import read_result

WriteRecipe = Callable[..., Path]
NAME = "some/model"
FIRST, SECOND = "a" * 40, "b" * 40
WIDTHS = {FIRST: 16, SECOND: 24}
FIXED: dict[str, Any] = {"name": NAME, "revision": "v2"}
AT_V2 = f"model={{name: {NAME}, revision: v2}}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of a model, of other widths: `main` is the first, `v2` the second."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--some--model"
    for commit, width in WIDTHS.items():
        tiny.save_model(folder / "snapshots" / commit, width=width)
    (folder / "refs").mkdir()
    for name, commit in (("main", FIRST), ("v2", SECOND)):
        (folder / "refs" / name).write_text(commit)
    return folder


def test_everything_is_loaded_from_the_revision(cache: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    settings = json.loads((cache / "snapshots" / SECOND / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 20
    (cache / "snapshots" / SECOND / "tokenizer_config.json").write_text(json.dumps(settings))
    first, second = ModelSection(name=NAME), ModelSection(**FIXED)
    assert (load_tokenizer(first).model_max_length, load_tokenizer(second).model_max_length) == (32, 20)
    assert (
        architecture(first.name, first.revision).hidden_size,
        architecture(second.name, second.revision).hidden_size,
    ) == (16, 24)
    config = json.loads((cache / "snapshots" / SECOND / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (cache / "snapshots" / SECOND / "config.json").write_text(json.dumps(quantised))
    assert stored_quantization(first) is None
    assert stored_quantization(second) == "bitsandbytes"
    (cache / "snapshots" / SECOND / "config.json").write_text(json.dumps(config))

    recipe = load_recipe(write_recipe(), [AT_V2, "training.epochs=1"])
    trained = 4 * (2 * 2 * 24 + 4 + 16)  # A and B of query and value in two layers, H, spline
    assert dry_run(recipe)["params"]["adapter"] == trained
    assert ranking(recipe, 400)["layers"][0]["d_in"] == 24
    run = train(recipe, tmp_path / "run")
    assert run.result["params"]["adapter"] == trained
    assert run.result["model_commit"] == SECOND
    assert run.result["recipe"]["model"] == FIXED

    found, _ = load_trained_model(load_run(run.folder))
    stored = load_file(cache / "snapshots" / SECOND / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(found.get_submodule("base_model.model.bert.embeddings.word_embeddings").weight, stored)
    scored = evaluate(load_run(run.folder), forms=["calibrated"])["calibrated"]
    assert scored == pytest.approx(run.result["metric"]["by_form"]["calibrated"], abs=1e-6)
    merged = merge(load_run(run.folder), tmp_path / "merged", form="calibrated").folder
    texts = ["the film was good", "a dull plot"]
    for one, other in zip(predict(run.folder, texts), predict(merged, texts), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_an_adapter_of_a_revision_says_which(cache: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """PEFT loads the base by the adapter's settings, and so does the code of its card."""
    run = train(load_recipe(write_recipe(), [AT_V2, "training.epochs=1"]), tmp_path / "run")
    for name in ("adapter", "lora"):
        folder = run.folder / name
        assert json.loads((folder / "adapter_config.json").read_text())["revision"] == "v2", name
        (load,) = [line for line in (folder / card.CARD).read_text().splitlines() if ".from_pretrained(base" in line]
        assert "revision='v2'" in load, name
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(run.folder / "lora", num_labels=2)
    assert loaded.config.hidden_size == 24


def test_another_commit_of_the_hub_is_told(
    cache: Path, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, with what to do; nothing else changes."""
    run = train(load_recipe(write_recipe(model=NAME), ["training.epochs=1"]), tmp_path / "run")
    assert run.result["model_commit"] == FIRST
    monkeypatch.setenv("COLUMNS", "500")
    told = CliRunner().invoke(cli.app, ["predict", str(run.folder), "the film was good"])
    assert (told.exit_code, "was trained on" in told.stderr) == (0, False)

    third = "c" * 40
    shutil.copytree(cache / "snapshots" / FIRST, cache / "snapshots" / third)
    (cache / "refs" / "main").write_text(third)
    expected = (
        f"{run.folder} was trained on commit {FIRST} of {NAME}, and commit {third} was loaded: "
        f"`model: {{name: {NAME}, revision: {FIRST}}}` in its recipe.yaml loads that one"
    )
    for load in (
        lambda: load_trained_model(load_run(run.folder)),
        lambda: evaluate(load_run(run.folder), forms=["calibrated"]),
    ):
        with pytest.warns(UserWarning, match="was trained on commit") as warned:
            load()
        assert [str(one.message) for one in warned if "commit" in str(one.message)] == [expected]

    path = run.folder / "recipe.yaml"
    path.write_text(recipe_files.dump({**recipe_files.read(path), "model": {"name": NAME, "revision": FIRST}}))
    with tiny.no_warning(".*was trained on"):
        model, _ = load_trained_model(load_run(run.folder))
    assert commit_of(model) == FIRST


def test_another_commit_of_a_pipeline_is_told(tmp_path: Path) -> None:
    """Its recipe takes no revision: with what is said it can be loaded."""
    result = {"model": "org/sdxl", "model_commit": FIRST, "recipe": {"task": {"name": "dreambooth"}}}
    with pytest.warns(UserWarning, match="was trained on commit") as warned:
        warn_of_another_commit(tmp_path, result, "c" * 40)
    said = str(warned[0].message)
    assert said.endswith(
        f"`hf download org/sdxl --revision {FIRST} --local-dir FOLDER` fetches that one, and `model: FOLDER` in its "
        "recipe.yaml loads it"
    )
    assert "revision:" not in said


def test_a_folder_has_a_digest(cache: Path, model: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """So has one of the cache itself, which is given by its path."""
    from aurora_lora.data import get_task

    task = get_task("tiny-sentiment")
    assert commit_of(load_base_model(NAME, task, load_tokenizer(NAME))) == FIRST
    for folder in (model, cache / "snapshots" / FIRST):
        found = commit_of(load_base_model(str(folder), task, load_tokenizer(str(folder))))
        assert found == sampled_digest(folder)
    assert train(load_recipe(write_recipe()), tmp_path / "run").result["model_commit"] == sampled_digest(model)


def test_other_weights_in_the_folder_are_told(
    model: Path, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is copied beside a model of the same name and shapes: the commands say that it is another."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    shutil.copytree(model, "bert")
    train(load_recipe(write_recipe(model="bert"), ["training.epochs=1"]), "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(tmp_path / "there" / "run", "run")
    shutil.copytree(model, "bert")
    uses: list[Callable[[], Any]] = [
        lambda: predict("run", ["the film was good"]),
        lambda: merge("run", f"merged{len(list(Path().iterdir()))}", form="calibrated"),
        lambda: evaluate("run", forms=["calibrated"]),
    ]
    for use in uses:
        with tiny.no_warning(".*was trained on"):
            use()

    tensors = load_file("bert/model.safetensors")
    tensors["encoder.layer.0.attention.self.query.weight"] += 0.01
    save_file(tensors, "bert/model.safetensors", {"format": "pt"})
    for use in uses:
        with pytest.warns(UserWarning, match="^run was trained on other weights than bert has here, and does not fit"):
            use()
    # of a model of the hub that lies in a folder now, nothing can be said
    result = json.loads(Path("run/result.json").read_text())
    for commit in (FIRST, None):
        Path("run/result.json").write_text(json.dumps({**result, "model_commit": commit}))
        with tiny.no_warning(".*was trained on"):
            load_trained_model(load_run("run"))


def test_a_run_goes_on_with_the_weights_it_was_started_on(
    model: Path, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe, before = load_recipe(write_recipe(), ["training.epochs=2"]), load_file(model / "model.safetensors")
    last_of_the_first_epoch = train(recipe, tmp_path / "whole").result["epochs"][0]["step"]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", make_callbacks=lambda: [tiny.Stop(last_of_the_first_epoch + 1)])
    name = "encoder.layer.0.attention.self.query.weight"
    save_file({**before, name: before[name] + 0.01}, model / "model.safetensors", {"format": "pt"})
    try:
        with pytest.raises(UserError) as refused:
            train(recipe, tmp_path / "run")
    finally:
        save_file(before, model / "model.safetensors", {"format": "pt"})
    assert str(refused.value) == (
        f"{tmp_path / 'run'} was started on other weights than {model} has here: put those back, or choose another "
        "output folder"
    )
    with tiny.no_warning(".*was started on"):
        resumed = train(recipe, tmp_path / "run")
    assert resumed.result["epochs"] == read_result(tmp_path / "whole")["epochs"]


@pytest.mark.parametrize("relative", [False, True])
def test_a_run_goes_on_where_its_model_and_data_have_moved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    """They are known again by their digests; a relative path of what is gone looks as a name of the hub does."""
    monkeypatch.chdir(tmp_path)
    for place in ("there", "here"):
        own_files.write_texts(tmp_path / place)
        shutil.copytree(model, tmp_path / place / "bert")

    def at(place: str) -> Recipe:
        folder = Path(place) if relative else tmp_path / place
        task = {"name": "classification", "data": str(folder / "reviews.csv"), "text": "review", "label": "stars"}
        return validate(tiny.recipe(folder / "bert", task=task), "recipe")

    expected = train(at("there"), tmp_path / "whole").result["epochs"]
    with pytest.raises(KeyboardInterrupt):
        train(at("there"), tmp_path / "run", make_callbacks=lambda: [tiny.Stop(7)])
    shutil.rmtree(tmp_path / "there")
    resumed = train(at("here"), tmp_path / "run")
    assert resumed.result["epochs"] == expected
    assert recipe_files.read(tmp_path / "run" / "recipe.yaml")["model"] == at("here").model
    with pytest.raises(UserError, match="they differ in model"):  # a finished one is what it was
        train(at("there"), tmp_path / "run")


def test_a_run_does_not_go_on_with_its_files_in_other_places(model: Path, tmp_path: Path) -> None:
    """What was trained on would be scored as a test, without another sign of it."""
    own_files.write_texts(tmp_path)
    lines = (tmp_path / "reviews.csv").read_text().splitlines(keepends=True)
    for name, rows in (("train", lines[1:31]), ("validation", lines[31:41]), ("test", lines[41:])):
        (tmp_path / f"{name}.csv").write_text("".join([lines[0], *rows]))

    def with_files(**named: str) -> Recipe:
        task = {"name": "classification", "text": "review", "label": "stars"}
        task |= {field: str(tmp_path / f"{name}.csv") for field, name in named.items()}
        return validate(tiny.recipe(model, task=task), "recipe")

    places = {"data": "train", "validation_data": "validation", "test_data": "test"}
    with pytest.raises(KeyboardInterrupt):
        train(with_files(**places), tmp_path / "run", make_callbacks=lambda: [tiny.Stop(6)])
    with pytest.raises(UserError, match=r"they differ in task\.test_data"):
        train(with_files(data="train", validation_data="validation"), tmp_path / "run")
    with pytest.raises(UserError, match=r"was started with .* in this order, and these files are now given in another"):
        train(with_files(**{**places, "test_data": "validation", "validation_data": "test"}), tmp_path / "run")


def test_a_run_that_goes_on_with_a_newer_commit_says_so(cache: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Most often one of the README: that is no reason to give up a run."""
    recipe = load_recipe(write_recipe(model=NAME), ["training.eval_every=1"])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", make_callbacks=lambda: [tiny.Stop(2)])
    third = "c" * 40
    shutil.copytree(cache / "snapshots" / FIRST, cache / "snapshots" / third)
    (cache / "refs" / "main").write_text(third)
    expected = f"{tmp_path / 'run'} was started on commit {FIRST} of {NAME}, and goes on with commit {third}"
    with pytest.warns(UserWarning, match=f"^{re.escape(expected)}$"):
        train(recipe, tmp_path / "run")


def test_a_revision_that_is_not_there_is_named(cache: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^model: '{NAME}', which is no folder here, at revision 'v9' cannot be loaded"
    ):
        load_tokenizer(ModelSection(name=NAME, revision="v9"))


@pytest.mark.parametrize("what", ["a packaged model", "a folder"])
def test_only_models_of_the_hub_have_revisions(what: str, model: Path) -> None:
    name = "minilm-l6" if what == "a packaged model" else str(model)
    with pytest.raises(UserError) as refused:
        validate({**tiny.recipe(model), "model": {"name": name, "revision": "v2"}}, "mine.yaml")
    assert str(refused.value) == (
        f"mine.yaml: model.revision: 'v2' is not allowed with '{name}', {what}: only models of the hub have revisions"
    )
