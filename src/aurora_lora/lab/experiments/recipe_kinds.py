"""The kinds of recipes: which one a recipe is of, and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.dreambooth import DREAMBOOTH
from ...diffusion.recipe import SubjectRecipe
from ...errors import UserError
from ...train.recipe import Recipe, RunRecipe, is_result, override, task_name, validate, validate_as
from .recipes import Found, find

if TYPE_CHECKING:
    from ...train.finished_run import FinishedRun


def load_any(given: Path | str, overrides: Sequence[str] = ()) -> RunRecipe:
    """Find and validate a recipe of any kind; as `load_recipe`, also by name.

    Raises:
        UserError: there is no such recipe, the file cannot be read, or a value is wrong; one line for each mistake.
    """
    return load_found(find(given, "recipe"), overrides)


def load_found(found: Found, overrides: Sequence[str]) -> RunRecipe:
    """Validate a recipe that was found already; see `load_any`."""
    return as_recipe(override(found.values(), overrides, (("", Recipe), ("", SubjectRecipe))), found.source)


def as_recipe(values: Any, source: str) -> RunRecipe:
    """Validate the plain values of a recipe of any kind.

    Args:
        values: of its fields; those that are missing get their defaults.
        source: where they are from, for messages.

    Raises:
        UserError: a value is wrong; one line for each mistake.
    """
    if is_result(values):
        raise UserError(f"{source}: this is the result of a run, not a recipe: recipe.yaml beside it is one")
    if task_name(values) == DREAMBOOTH.name:
        return validate_as(SubjectRecipe, values, source)
    return validate(values, source)


def train_any(recipe: RunRecipe, output: Path) -> FinishedRun:
    """Run a recipe of any kind; as `train`."""
    if isinstance(recipe, SubjectRecipe):
        from ...diffusion.progress import quiet
        from ...diffusion.run import train_subject

        quiet()
        return train_subject(recipe, output)
    from ...train.run import train

    assert isinstance(recipe, Recipe)
    return train(recipe, output)
