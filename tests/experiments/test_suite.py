"""Suites: what cells there are, which runs they need, and the number of a cell in a result."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BertConfig

from aurora_lora.errors import UserError
from aurora_lora.experiments.architectures import architecture
from aurora_lora.experiments.reproduce import prepare
from aurora_lora.experiments.suite import cells, load_suite, recipes_folder, score_of, suites
from aurora_lora.methods import METHODS

Recipes = Callable[..., Path]


def test_each_run_once(recipes: Recipes, tmp_path: Path) -> None:
    todo = prepare("tiny", "packaged", tmp_path / "runs", recipes=recipes())
    assert len(todo.cells) == 6  # three rows, two columns
    assert sorted(todo.jobs) == [
        (f"{method}-{task}", seed)
        for method in ("aurora", "lora")
        for task in ("rating", "sentiment")
        for seed in (0, 1)
    ]
    job = todo.jobs["lora-rating", 1]
    assert (job.recipe.method.name, job.recipe.task.name, job.recipe.seed) == ("lora", "tiny-rating", 1)
    assert job.folder == tmp_path / "runs" / "tiny" / "lora-rating" / "seed1"
    assert [key[1] for key in todo.jobs] == [0, 0, 0, 0, 1, 1, 1, 1]  # the first seed's table is whole first


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["lora-*"], 2),
        (["*sentiment"], 3),
        (["AuroRA"], 2),
        (["rating"], 3),
        (["lora", "aurora-rating"], 4),
        (["tiny"], 6),
    ],
)
def test_only(recipes: Recipes, only: list[str], expected: int) -> None:
    suite, _ = load_suite("tiny", "packaged", recipes())
    assert len(cells(suite, only)) == expected


def test_overrides_and_seeds(recipes: Recipes, tmp_path: Path) -> None:
    todo = prepare(
        "tiny", "packaged", tmp_path, recipes=recipes(), seeds=[5, 5], overrides=["training.epochs=2"], only=["lora"]
    )
    assert list(todo.jobs) == [("lora-sentiment", 5), ("lora-rating", 5)]
    assert all(job.recipe.training.epochs == 2 for job in todo.jobs.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, -1]}, "--seeds: -1 is not allowed: a seed is at least 0 and below 2**32"),
        ({"seeds": [2**32]}, "--seeds: 4294967296 is not allowed: a seed is at least 0 and below 2**32"),
        ({"overrides": ["seed=7"]}, "seed is no change to the recipes: each is run with every seed of --seeds 0,1,..."),
    ],
)
def test_wrong_seeds(recipes: Recipes, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        prepare("tiny", "packaged", tmp_path, recipes=recipes(), **changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "scale", "only", "message"),
    [
        ("tinny", "packaged", [], "'tinny' is an unknown suite; did you mean 'tiny'?"),
        ("tiny", "hub", [], "--scale: 'hub' is not allowed: tiny is there at scale packaged"),
        (
            "tiny",
            "packaged",
            ["lora-ratin"],
            "--only: 'lora-ratin' is an unknown recipe, row or column; did you mean 'lora-rating'?",
        ),
    ],
)
def test_errors(recipes: Recipes, name: str, scale: str, only: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(name, scale, tmp_path, only=only, recipes=recipes())
    assert str(error.value) == message


def test_a_wrong_file_names_the_field(recipes: Recipes) -> None:
    folder = recipes(columns=[{"name": "sentiment", "label": "S", "metric": "accuracy"}])
    load_suite("tiny", "packaged", folder)
    folder = recipes(statistic="mode", seeds=[])
    with pytest.raises(UserError, match=r"suite\.yaml: seeds: .*\n.*suite\.yaml: statistic: .*'median' or 'mean'"):
        load_suite("tiny", "packaged", folder)
    folder = recipes(seeds=[0, -1])
    with pytest.raises(UserError, match=r"suite\.yaml: seeds\.1: .*greater than or equal to 0"):
        load_suite("tiny", "packaged", folder)
    folder = recipes(columns=[{"name": "other", "label": "O", "metric": "accuracy"}])
    with pytest.raises(UserError, match="row LoRA: scores for sentiment, which is no column"):
        load_suite("tiny", "packaged", folder)


def test_score_of(recipes: Recipes) -> None:
    suite, _ = load_suite("tiny", "packaged", recipes())
    static, calibrated = cells(suite, ["AuroRA"])[0], cells(suite, ["AuroRA, calibrated"])[0]
    result = {"metric": {"by_form": {"static": {"accuracy": 0.5}, "calibrated": {"accuracy": None}}}}
    assert score_of(result, static) == 50.0
    assert score_of(result, calibrated) is None
    with pytest.raises(UserError, match=r"result of lora-sentiment has no form 'merged' \(it has static, calibrated"):
        score_of(result, cells(suite, ["lora"])[0])
    several = static.__class__(static.group, static.row, static.column.model_copy(update={"test": "piqa"}))
    result["metric"]["by_test_set"] = {"piqa": {"static": {"accuracy": 0.25}}}
    assert score_of(result, several) == 25.0
    del result["metric"]["by_test_set"]
    with pytest.raises(UserError, match="has no test set 'piqa'"):
        score_of(result, several)


OWN = [(name, scale) for name, scales in suites().items() for scale in scales]


@pytest.mark.parametrize(("name", "scale"), OWN)
def test_the_packages_own_suites_are_whole(name: str, scale: str, tmp_path: Path) -> None:
    """Every cell's recipe can be read, and its run will have the cell's form and test set."""
    todo = prepare(name, scale, tmp_path)
    for cell in todo.cells:
        recipe = todo.jobs[cell.recipe, todo.seeds[0]].recipe
        method = METHODS[recipe.method.name]
        assert cell.row.form in method.forms(recipe.method.options), cell.recipe
        if cell.column.test is not None:
            assert cell.column.test in (recipe.task.test_sets or ()), cell.recipe


def test_the_recipes_are_as_their_script_writes_them() -> None:
    script = recipes_folder() / "make.py"
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_run_of_another_suite_is_shared(recipes: Recipes, tmp_path: Path) -> None:
    folder = recipes()
    other = folder / "other" / "packaged"
    other.mkdir(parents=True)
    text = (folder / "tiny" / "packaged" / "suite.yaml").read_text()
    (other / "suite.yaml").write_text(text.replace("lora-{column}", "tiny/lora-{column}"))
    for path in (folder / "tiny" / "packaged").glob("aurora-*.yaml"):
        (other / path.name).write_text(path.read_text())
    todo = prepare("other", "packaged", tmp_path / "runs", recipes=folder)
    assert todo.jobs["tiny/lora-rating", 0].folder == tmp_path / "runs" / "tiny" / "lora-rating" / "seed0"
    assert todo.jobs["aurora-rating", 0].folder == tmp_path / "runs" / "other" / "aurora-rating" / "seed0"
    assert todo.folder == tmp_path / "runs" / "other"


def test_hours_are_the_time_of_training(recipes: Recipes) -> None:
    suite, _ = load_suite("tiny", "packaged", recipes(columns=[{"name": "sentiment", "label": "h", "metric": "hours"}]))
    assert score_of({"time": {"train_s": 5400}}, cells(suite)[0]) == 1.5


def test_a_model_is_read_once_and_each_caller_gets_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading a GGUF file's shapes takes seconds, and a plan has hundreds of runs."""
    BertConfig(hidden_size=24).save_pretrained(tmp_path)
    read, load = [], AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **more: read.append(args) or load(*args, **more))
    first = architecture(str(tmp_path))
    first.num_labels = 7
    second = architecture(str(tmp_path))
    assert (len(read), second.hidden_size, second.num_labels) == (1, 24, 2)
