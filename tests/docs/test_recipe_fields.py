"""docs/recipe.md has every field of a recipe, as `make docs` writes it."""

from pathlib import Path

from aurora_lora.training.reading import load_recipe
from aurora_lora.training.recipe import Recipe
from aurora_lora.training.sections import TrainingSection
from make.recipe_fields import recipe_fields

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_complete() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in recipe_fields().items():
        shown = page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end {name} -->")[0].strip()
        assert shown == text, "make docs writes it"
    for section in (Recipe, TrainingSection):
        for field, about in section.model_fields.items():
            assert f"| `{about.alias or field}` |" in page


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(example, encoding="utf-8")
    recipe = load_recipe(file)
    assert (recipe.base.quantization, recipe.training.patience) == ("nf4", 2)
