"""Which test sets are scored: one, those that a table shows, and further ones later, without training again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from aurora_lora.data import TASKS, SplitSizes
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.jobs import in_turn
from aurora_lora.lab.experiments.paper import SUITES
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.suite import Suite
from aurora_lora.lab.report.paper import compare
from aurora_lora.train import load_run, train
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.recipe import Recipe, validate

SETS = ("boolq", "piqa", "siqa")
Of = Callable[..., Recipe]


def _load_test(name: str, size: int | None, split_seed: int) -> Any:
    return tiny.QUESTIONS.load(SplitSizes(16, 16, size), SETS.index(name) + 5)["test"]


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(sizes: SplitSizes, split_seed: int) -> Any:
        splits = tiny.QUESTIONS.load(sizes, split_seed)
        del splits["test"]
        return splits

    forms = {"prompt_forms": ("cloze",)}
    task = replace(tiny.QUESTIONS, name="tiny-sets", test_sets=SETS, load=load, load_test=_load_test, **forms)
    monkeypatch.setitem(TASKS, task.name, task)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    model = tiny.save_language_model(tmp_path / "model")
    task = {"name": "tiny-sets", "train_size": 32, "validation_size": 16, "test_size": 16}
    method = {"name": "aurora", "target_modules": ["q_proj", "v_proj"]}
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-2, "threads": 1}
    return tiny.recipe(model, task=task, method=method, training=training)


@pytest.fixture
def of(values: dict[str, Any]) -> Of:
    """The recipe that scores these sets."""

    def made(*sets: str) -> Recipe:
        return validate({**values, "task": {**values["task"], "test_sets": list(sets)}}, "tiny")

    return made


def test_further_sets_are_scored_without_training(of: Of, tmp_path: Path) -> None:
    train(of("piqa"), tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns
    more = train(of("boolq", "piqa"), tmp_path / "run").result
    assert weights.stat().st_mtime_ns == written
    assert more["recipe"]["task"]["test_sets"] == ["piqa", "boolq"]
    both = train(of("boolq", "piqa"), tmp_path / "both").result
    for form, scores in both["metric"]["by_form"].items():
        assert more["metric"]["by_form"][form] == pytest.approx(scores, rel=1e-6)
        for name in ("boolq", "piqa"):
            expected = both["metric"]["by_test_set"][name][form]
            assert more["metric"]["by_test_set"][name][form] == pytest.approx(expected, rel=1e-6)
    for name in ("examples", "chance"):
        assert more["metric"][name] == both["metric"][name]
    again = load_run(tmp_path / "run")
    assert (
        evaluate(again, forms=["static"], split="boolq")["static"] == more["metric"]["by_test_set"]["boolq"]["static"]
    )
    assert train(of("piqa"), tmp_path / "run").result == more  # it has more than is asked for


@pytest.fixture
def _suite(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite with a column for each test set, all from one run."""
    columns = [{"name": name, "label": name, "metric": "accuracy", "test": name} for name in SETS]
    columns.append({"name": "hours", "label": "hours", "metric": "hours"})
    rows = [{"name": "AuroRA", "recipe": "aurora", "form": "static", "scores": dict.fromkeys(SETS, 50.0)}]
    groups = [{"name": "Tiny", "rows": rows}]
    recipe = {"values": {name: value for name, value in values.items() if name != "name"}, "words": ("Tiny.",)}
    fields = {"name": "tiny", "scale": "packaged", "title": "Tiny", "seeds": [0], "average": "Avg."}
    suite = Suite.model_validate({**fields, "columns": columns, "groups": groups, "recipes": {"aurora": recipe}})
    monkeypatch.setitem(SUITES, "tiny", {"packaged": suite})


@pytest.mark.usefixtures("_suite")
def test_a_table_shows_what_the_recipes_score(tmp_path: Path) -> None:
    overrides = ["task.test_sets=[boolq,piqa]"]
    todo = prepare("tiny", "packaged", tmp_path / "runs", overrides=overrides)
    assert all(one.result is not None for one in in_turn(todo.jobs.values()))
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    assert [one["column"] for one in compared] == ["boolq", "piqa", "hours"]  # and no average of some
    assert all(one["ours"] is not None for one in compared)


@pytest.mark.usefixtures("_suite")
def test_a_table_without_a_column_is_refused_first(tmp_path: Path) -> None:
    why = r"task.test_sets: the wanted columns show siqa, and the recipes score boolq only"
    with pytest.raises(UserError, match=why):
        prepare("tiny", "packaged", tmp_path, overrides=["task.test_sets=[boolq]"], only=["siqa"])


@pytest.mark.usefixtures("_suite")
def test_only_narrows_what_is_scored_and_the_rest_comes_later(tmp_path: Path) -> None:
    narrow = prepare("tiny", "packaged", tmp_path / "runs", only=["boolq", "hours"])
    (job,) = narrow.jobs.values()
    assert job.recipe.task.test_sets == ("boolq",)
    assert all(one.result is not None for one in in_turn(narrow.jobs.values()))
    assert list(narrow.results()["aurora", 0]["metric"]["by_test_set"]) == ["boolq"]
    weights = job.folder / "adapter" / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns

    whole = prepare("tiny", "packaged", tmp_path / "runs")
    assert [one.status() for one in whole.jobs.values()] == ["started"]
    assert all(one.result is not None for one in in_turn(whole.jobs.values()))
    compared = compare(whole.suite, whole.cells, whole.seeds, whole.results())
    assert [one["column"] for one in compared] == [*SETS, "hours", "Avg."]
    assert all(one["ours"] is not None for one in compared)
    assert weights.stat().st_mtime_ns == written
    assert job.status() == "finished"
