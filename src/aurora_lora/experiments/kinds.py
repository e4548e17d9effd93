"""The kinds of recipes: which one a file holds, and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..diffusion.recipe import SubjectRecipe
from ..tasks.dreambooth import DREAMBOOTH
from ..training.recipe import Recipe, RunRecipe, read_values, task_name, validate, validate_as

if TYPE_CHECKING:
    from ..training.run import Run


def load_any(path: Path | str, overrides: Sequence[str] = ()) -> RunRecipe:
    """Read and validate a recipe of any kind; as `load_recipe`.

    Raises:
        UserError: the file cannot be read, or a value is wrong; one line for each mistake.
    """
    path = Path(path)
    values = read_values(path, overrides)
    if task_name(values) == DREAMBOOTH.name:
        return validate_as(SubjectRecipe, values, str(path))
    return validate(values, str(path))


def train_any(recipe: RunRecipe, output: Path) -> Run:
    """Run a recipe of any kind; as `train`."""
    if isinstance(recipe, SubjectRecipe):
        from ..diffusion.progress import quiet
        from ..diffusion.run import train_subject

        quiet()
        return train_subject(recipe, output)
    from ..training.run import train

    assert isinstance(recipe, Recipe)
    return train(recipe, output)
