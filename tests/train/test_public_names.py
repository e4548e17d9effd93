"""What `aurora_lora.train` has for programs: its names, their types, and what its functions take for a run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aurora_lora
import aurora_lora.train as room
from aurora_lora.train import (
    TrainedRun,
    evaluate,
    export,
    gap,
    learned_activation,
    load_run,
    merge,
    predict,
    read_result,
    recipe_files,
    train,
)

SCRIPT = """
from pathlib import Path

import aurora_lora
from aurora_lora.train import evaluate, export, predict, train

run = train("recipe.yaml", Path("run"))
reveal_type(run)
reveal_type(evaluate(run, forms="static"))
reveal_type(export("run", "lora").folder)
reveal_type(predict(run, ["a warm film"]))
reveal_type(aurora_lora.calibrate(None, [], ridge=0.1))
"""
TYPES = (
    "aurora_lora.train.finished_run.TrainedRun",
    "dict[str, dict[str, float]]",
    "pathlib.Path",
    "list[dict[str, Any]]",
    "aurora_lora.deploy.calibrate.CalibrationReport",
)


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What mypy says of a script, strictly; of the libraries that the package imports it reads nothing."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("typed")
    environment = {**os.environ, "MYPYPATH": str(Path(aurora_lora.__file__).parents[1])}
    options = ("--strict", "--config-file=", "--no-site-packages", "--ignore-missing-imports")
    command = [sys.executable, "-m", "mypy", *options, "--follow-imports=silent", "script.py"]

    def check(script: str) -> str:
        (folder / "script.py").write_text(script)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert not done.stderr
        return done.stdout

    return check


def test_a_program_has_types(mypy: Callable[[str], str]) -> None:
    *revealed, last = mypy(SCRIPT).splitlines()
    assert [line.partition('Revealed type is "')[2].rstrip('"') for line in revealed] == list(TYPES)
    assert last == "Success: no issues found in 1 source file"


def test_every_name_is_there() -> None:
    assert room.__all__ == sorted(room.__all__)
    for name in room.__all__:
        assert getattr(room, name) is getattr(room, name)
        assert not isinstance(getattr(room, name), type(sys)), name  # no module is called as a function
        assert name in dir(room)
    with pytest.raises(AttributeError, match="has no attribute 'trains'"):
        room.trains  # type: ignore[attr-defined]  # noqa: B018


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    import tiny

    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    reference = {"method": {"name": "lora", "r": 2, "target_modules": ["query"]}}
    values = tiny.recipe(model, reference=reference)
    values["training"]["epochs"] = 1
    path.write_text(recipe_files.dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Trained from a file."""
    return train(str(recipe), str(tmp_path_factory.mktemp("trained") / "run"))


def test_what_train_gives_is_the_run_that_is_loaded(run: TrainedRun, recipe: Path) -> None:
    loaded = load_run(str(run.folder))
    assert (run.was_finished, loaded.was_finished) == (False, True)
    assert (run.folder, run.recipe, run.result) == (loaded.folder, loaded.recipe, loaded.result)
    assert loaded.reference == run.reference == read_result(str(run.folder / "reference"))
    assert train(recipe, run.folder) == loaded


@pytest.mark.parametrize("given", ["run", "str"])
def test_a_run_or_its_folder(run: TrainedRun, given: str, tmp_path: Path) -> None:
    where: Any = {"run": run, "path": run.folder, "str": str(run.folder)}[given]
    assert evaluate(where) == run.result["metric"]["by_form"]
    assert evaluate(where, forms="static") == {"static": run.result["metric"]["by_form"]["static"]}
    merged = merge(where, tmp_path / "merged", form="static")
    exported = export(where, str(tmp_path / "lora"))
    assert (merged.form, exported) == ("static", (tmp_path / "lora", "calibrated"))
    answers = predict(where, ["a warm film"], form="static")
    assert answers[0]["probability"] == pytest.approx(predict(merged.folder, ["a warm film"])[0]["probability"])
    assert gap(where, examples=8).predictions == 8
    assert learned_activation(where, examples=4)["examples"] == 4
