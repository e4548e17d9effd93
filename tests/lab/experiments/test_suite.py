"""Suites: what cells there are, which runs they need, and the number of a cell in a result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.experiments import paper
from aurora_lora.lab.experiments.recipes import load_suite, suites
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.suite import Suite, cells, score_of

MakeSuite = Callable[..., Suite]
RESULTS = Path(__file__).parents[3] / "results"


def test_each_run_once(tiny_suite: MakeSuite, tmp_path: Path) -> None:
    tiny_suite()
    todo = prepare("tiny", "packaged", tmp_path / "runs")
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
        (["AuroRA"], 2),
        (["rating"], 3),
        (["lora", "aurora-rating"], 4),
    ],
)
def test_only(tiny_suite: MakeSuite, only: list[str], expected: int) -> None:
    assert len(cells(tiny_suite(), only)) == expected


def test_overrides_and_seeds(tiny_suite: MakeSuite, tmp_path: Path) -> None:
    tiny_suite()
    todo = prepare("tiny", "packaged", tmp_path, seeds=[5, 5], overrides=["training.epochs=2"], only=["lora"])
    assert list(todo.jobs) == [("lora-sentiment", 5), ("lora-rating", 5)]
    assert all(job.recipe.training.epochs == 2 for job in todo.jobs.values())


def test_score_of(tiny_suite: MakeSuite) -> None:
    suite = tiny_suite()
    static, calibrated = cells(suite, ["AuroRA"])[0], cells(suite, ["AuroRA, calibrated"])[0]
    result = {"metric": {"by_form": {"static": {"accuracy": 0.5}, "calibrated": {"accuracy": None}}}}
    assert score_of(result, static) == 50.0
    assert score_of(result, calibrated) is None
    with pytest.raises(UserError, match="result of lora-sentiment has no 'merged'"):
        score_of(result, cells(suite, ["lora"])[0])
    several = static.__class__(static.group, static.row, static.column.model_copy(update={"test": "piqa"}))
    result["metric"]["by_test_set"] = {"piqa": {"static": {"accuracy": 0.25}}}
    assert score_of(result, several) == 25.0
    del result["metric"]["by_test_set"]
    with pytest.raises(UserError, match="has no 'piqa'"):
        score_of(result, several)


OWN = [(name, scale) for name, scales in suites().items() for scale in scales]


@pytest.mark.parametrize(("name", "scale"), OWN)
def test_the_packages_own_suites_are_whole(name: str, scale: str, tmp_path: Path) -> None:
    """Every cell's recipe can be read, and its run will have the cell's form and test set."""
    todo = prepare(name, scale, tmp_path)
    for cell in todo.cells:
        recipe = todo.jobs[cell.recipe, todo.seeds[0]].recipe
        assert cell.row.form in recipe.method.forms, cell.recipe
        if cell.column.test is not None:
            assert cell.column.test in recipe.test_sets, cell.recipe


def test_the_rates_of_packaged_images_are_those_that_the_studies_chose(tmp_path: Path) -> None:
    """Each row has those of its own form, of the setting with the same method and training; every method has a row."""
    chosen: dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {}
    for task, study in {"digits": "digits", "cifar10-10k": "cifar10"}.items():
        summary = json.loads((RESULTS / "studies" / study / "study.json").read_text())
        method_of = {one["name"]: one["method"] for one in summary["study"]["settings"]}
        for setting in summary["settings"]:
            method = method_of[setting["name"]]
            options = {"name": method} if isinstance(method, str) else dict(method)
            name = options.pop("name")
            options.pop("target_modules", None)  # names there, a pattern here
            for form, values in setting.get("chosen_by_form", {setting["deployed"]: setting["chosen"]}).items():
                assert (task, name, form) not in chosen
                chosen[task, name, form] = (values, summary["study"]["base"]["training"], options)
    used = set()
    for todo in (prepare(f"table{number}", "packaged", tmp_path) for number in (3, 4, 5)):
        for cell in todo.cells:
            recipe: Any = todo.jobs[cell.recipe, 0].recipe
            key = (cell.column.name, recipe.method.name, cell.row.form)
            rates, training, options = chosen[key]
            assert {field: recipe.method.options[field] for field in options} == options, cell.recipe
            fields = {name.removeprefix("training."): rate for name, rate in rates.items()} | training
            fields.pop("threads")
            assert {field: getattr(recipe.training, field) for field in fields} == fields, cell.recipe
            used.add(key)
    assert {key[:2] for key in used} == {key[:2] for key in chosen}


@pytest.mark.parametrize("path", sorted((RESULTS / "reproduce").glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_that_were_reproduced_are_of_these_cells(path: Path) -> None:
    record = json.loads(path.read_text())
    suite = load_suite(record["suite"], record["scale"])
    known = {(cell.group, cell.row.name, cell.column.label, cell.recipe) for cell in cells(suite)}
    had = {(one["group"], one["row"], one["column"], one["recipe"]) for one in record["cells"]}
    assert {one for one in had if one[2] != suite.average} <= known


def test_a_run_of_another_suite_is_shared(tiny_suite: MakeSuite, tmp_path: Path) -> None:
    tiny_suite()
    rows = [{"name": "LoRA", "recipe": "tiny/lora-{column}"}, {"name": "AuroRA", "recipe": "aurora-{column}"}]
    tiny_suite("other", groups=[{"name": "Tiny", "rows": rows}])
    todo = prepare("other", "packaged", tmp_path / "runs")
    assert todo.jobs["tiny/lora-rating", 0].folder == tmp_path / "runs" / "tiny" / "lora-rating" / "seed0"
    assert todo.jobs["aurora-rating", 0].folder == tmp_path / "runs" / "other" / "aurora-rating" / "seed0"
    assert todo.folder == tmp_path / "runs" / "other"


def test_layers_of_a_suite_are_put_together_in_their_order() -> None:
    layers = [
        {"names": {"table": "{title} on {label}."}, "values": {"method": {"r": 2}, "task": {"name": "{column}"}}},
        [{"of": ["a", "*-a"], "names": {"title": "A"}, "values": {"method": {"alpha": 4}}, "words": ["Its own."]}],
        {"of": ["a"], "on": ["y"], "values": {"method": {"r": 8}}},
        {"fields": ["training.epochs"], "numbers": {"x": [1], "y": [3]}},
    ]
    made = paper.make_suite(
        [{"name": "x", "label": "X", "metric": "accuracy"}, {"name": "y", "label": "Y", "metric": "accuracy"}],
        {"G": "A | a-{column} | static | 80 90.5 | 85 | 1K\nother | other/a-{column}\n"},
        layers,
        name="s",
        scale="hub",
        title="S",
        seeds=[0],
    )
    assert made.recipes.keys() == {"a-x", "a-y"}
    assert made.recipes["a-x"].values == {
        "method": {"r": 2, "alpha": 4},
        "task": {"name": "x"},
        "training": {"epochs": 1},
    }
    assert made.recipes["a-y"].values["method"] == {"r": 8, "alpha": 4}
    assert made.recipes["a-y"].words == ("A on Y.", "Its own.")
    first, second = made.groups[0].rows
    assert (first.scores, first.average, first.params, first.form) == ({"x": 80.0, "y": 90.5}, 85.0, "1K", "static")
    assert (first.quoted, second.form, second.scores) == (True, "merged", {})
