"""Recipes and studies by name: from any folder, as YAML, and what is said of a name that there is not."""

from pathlib import Path

import pytest
import yaml

from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.recipes import RecipeOfCell, find, load_any, named
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.train.recipe_files import RecipeFile, recipes_folder


def test_every_recipe_and_study_has_a_name_of_its_own_and_can_be_read() -> None:
    """From Python, as its YAML says."""
    recipes = named("recipe")
    assert {
        "demo",
        "figure2",
        "teacher",
        "table1/base-lora-rte",
        "table3/lora-digits",
        "figure4/smoke",
    } < recipes.keys()
    cells = [found for found in recipes.values() if isinstance(found, RecipeOfCell)]
    assert len(cells) == sum(len(suite.recipes) for suite in {id(cell.suite): cell.suite for cell in cells}.values())
    assert len({(cell.suite.name, tuple(sorted(cell.name.split("-")))) for cell in cells}) == len(cells)
    for name, found in recipes.items():
        assert load_any(name).name == name.replace("/", "-")
        assert find(name, "recipe") == found
    for name in named("study"):
        assert load_study(name).name == name


def test_a_cell_as_yaml_is_the_recipe_that_reproduce_runs(tmp_path: Path) -> None:
    todo = prepare("table1", "hub", tmp_path, seeds=[0], only=["base-lora-rte", "base-fourierft-*"])
    assert len(todo.jobs) == 7
    for (name, _), job in todo.jobs.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(find(f"table1/{name}", "recipe").yaml())
        assert load_any(path).resolved() == job.recipe.resolved() == load_any(f"table1/{name}").resolved()
    text = find("table1/base-lora-rte", "recipe").yaml()
    assert text.splitlines()[:4] == [
        "# aurora train table1/base-lora-rte --output runs/hub/table1/base-lora-rte",
        "#",
        "# Table 1: LoRA on RTE, RoBERTa base.",
        "# Settings of LoRA's scripts (microsoft/LoRA), whose batch is that of several GPUs; here it is accumulated.",
    ]
    assert yaml.safe_load(text)["training"]["gradient_accumulation_steps"] == 8


def test_a_name_comes_before_a_file_and_a_path_is_always_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("name: mine")
    demo = find("demo", "recipe")
    assert isinstance(demo, RecipeFile)
    assert demo.path == recipes_folder() / "demo.yaml"
    assert find("./demo", "recipe") == RecipeFile(Path("demo")) == find(Path("demo"), "recipe")
    assert find("demo.yaml", "recipe") == RecipeFile(Path("demo.yaml"))  # which there is not, as reading it says
    with pytest.raises(UserError, match=r"^demo\.yaml cannot be read: No such file or directory$"):
        load_any("demo.yaml")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            "table1/base-lora-rt",
            "recipe",
            "'table1/base-lora-rt' is no file, and an unknown recipe; did you mean 'table1/base-lora-rte'?",
        ),
        ("captured-effect", "recipe", "'captured-effect' is a study, not a recipe: aurora sweep captured-effect"),
    ],
)
def test_unknown_names(given: str, kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find(given, kind)  # type: ignore[arg-type]
    assert str(error.value) == message
