"""Fixtures of the training tests: a tiny model, its recipe, and a process that forks runs to be killed."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import own_files
import tiny

from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, recipe_files, train
from aurora_lora.train.recipe import validate
from forks import Order, forked


@pytest.fixture(scope="session", autouse=True)
def _tiny_tasks() -> None:
    tiny.register()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with dropout 0.1: a resumed run must restore the random state as well."""
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model_without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout: several processes draw other random numbers than one."""
    return tiny.save_model(tmp_path_factory.mktemp("model_without_dropout"), dropout=0.0)


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a reference; a test that changes it copies it."""
    values = tiny.recipe(model, reference={"method": "linear-probe"})
    return train(validate(values, "recipe"), tmp_path_factory.mktemp("finished") / "run").folder


@pytest.fixture
def refused() -> Callable[..., None]:
    """Checks that a recipe is refused in one line that begins so, behind its path."""

    def check(recipe: Path, message: str, *overrides: str) -> None:
        with pytest.raises(UserError) as caught:
            load_recipe(recipe, overrides)
        assert str(caught.value).startswith(f"{recipe}: {message}")
        assert "\n" not in str(caught.value)

    return check


@pytest.fixture
def write_recipe(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Write a tiny recipe with changes; gives its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe_files.dump(tiny.recipe(changes.pop("model", model), **changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def aurora() -> Iterator[Callable[..., list[Order]]]:
    """`aurora(order, ...)` runs the command once for each order, all at the same time, in forked processes."""
    with forked(Path(__file__).with_name("zygote.py")) as run:
        yield run


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and a model for each of them."""
    folder = own_files.write_texts(tmp_path_factory.mktemp("own"))
    tiny.save_model(folder / "bert", dropout=0.0)
    tiny.save_language_model(folder / "causal")
    tiny.save_vit(folder / "vit")
    return own_files.write_images(folder)


@pytest.fixture
def here(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(own / "cache"))
    shutil.copytree(own, tmp_path / "here", ignore=shutil.ignore_patterns("cache", "runs"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
