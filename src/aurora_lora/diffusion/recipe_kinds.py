"""The kinds of recipes: which one a recipe is of, and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..data.dreambooth import DREAMBOOTH
from ..errors import UserError
from ..train.finished_run import FinishedRun
from ..train.recipe import Recipe, RunRecipe, is_result, override, task_name, validate, validate_as
from .recipe import SubjectRecipe


class Found(Protocol):
    """A recipe that was found: a file, or a cell of the paper's tables."""

    @property
    def source(self) -> str: ...

    def values(self) -> Any: ...


def load_found(found: Found, overrides: Sequence[str]) -> RunRecipe:
    """Validate a recipe that was found already; by its name or file."""
    return as_recipe(override(found.values(), overrides), found.source)


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
        from .progress import quiet
        from .run import train_subject

        quiet()
        return train_subject(recipe, output)
    from ..train.run import train

    assert isinstance(recipe, Recipe)
    return train(recipe, output)
