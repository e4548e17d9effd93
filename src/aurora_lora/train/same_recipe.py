"""Whether two recipes train the same, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .reading import validate_as
from .recipe import CHANGE_NOTHING, RunRecipe

PLACES_OF_DATA = ("task.data", "task.validation_data", "task.test_data")
PLACES_OF_MODEL = ("model", "model.name")


def check_same_recipe(
    values: Any,
    recipe: RunRecipe,
    source: Path | str,
    holds: str,
    *,
    may_have_moved: Callable[[set[str]], bool] = lambda fields: False,
) -> None:
    """Raise a UserError if the plain values are those of another recipe.

    Args:
        values: that are stored.
        recipe: that is asked for.
        source: where they are stored.
        holds: how the message begins: what holds the run of another recipe.
        may_have_moved: whether fields of paths may differ; asked where no others do.
    """
    # validated, so that a field which a later version adds counts as its default
    stored = validate_as(type(recipe), values, str(source))
    there, here = (
        {field: value for field, value in flatten(one.resolved()).items() if field not in CHANGE_NOTHING}
        for one in (stored, recipe)
    )
    both = {field for field in there.keys() & here.keys() if there[field] != here[field]}
    if both and there.keys() == here.keys() and both <= {*PLACES_OF_DATA, *PLACES_OF_MODEL} and may_have_moved(both):
        return
    if differing := differences(there, here):
        raise UserError(
            f"{holds} the run of another recipe; they differ in {', '.join(differing)}: choose another output folder"
        )


def differences(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    names: tuple[str, str] = ("there", "here"),
    missing: Any = "not given",
) -> list[str]:
    """`seed (there 0, here 1)` for each field that has another value here.

    Args:
        there: values by their dotted names.
        here: the others.
        names: of the two.
        missing: what counts as the value of a field that one of them does not have.
    """
    pairs = ((field, there.get(field, missing), here.get(field, missing)) for field in sorted({*there, *here}))
    return [f"{field} ({names[0]} {old!r}, {names[1]} {new!r})" for field, old, new in pairs if old != new]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}{key}."))
    return flat or {prefix.rstrip("."): {}}
