"""docs/recipe.md has every field of a recipe, as `make docs` writes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_lora.train.recipe import Recipe, TrainingSection, load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_complete() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for section in (Recipe, TrainingSection):
        for field, about in section.model_fields.items():
            assert f"| `{about.alias or field}` |" in page


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(example, encoding="utf-8")
    recipe = load_recipe(file)
    assert (recipe.base.quantization, recipe.training.patience) == ("nf4", 2)


def _results() -> Iterator[dict[str, Any]]:
    """Those that are committed: of single runs, and what the lines of studies' runs have of theirs."""
    folder = PAGE.parents[1] / "results"
    yield json.loads((folder / "chat" / "siqa.json").read_text(encoding="utf-8"))
    for path in folder.glob("studies/*/runs.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            yield {key: value for key, value in json.loads(line).items() if key != "run"}


def _below(result: dict[str, Any], name: str) -> list[str]:
    return [f"metric.{key}" for key in result["metric"]] if name == "metric" else []


def test_every_key_of_a_result_is_on_the_page() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition("### `result.json`")[2].partition("\n## ")[0]
    keys = {key for one in _results() for name in one for key in (name, *_below(one, name))}
    assert {"samples", "data", "metric.before", "metric.by_form"} <= keys
    missing = [key for key in sorted(keys) if f"`{key}" not in shown]
    assert not missing
