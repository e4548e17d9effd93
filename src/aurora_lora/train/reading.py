"""Recipes from files and plain values: validated once, and one line for each mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..data.dreambooth import DREAMBOOTH
from ..data.own.kinds import OWN
from ..errors import UserError
from ..field_errors import takes_text, validated
from . import yaml_text
from .own_section import own_task
from .recipe import Recipe, RunRecipe
from .recipe_files import find_recipe

AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


def load_recipe(recipe: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: a YAML file, or the name of a recipe that comes with the package: `"demo"`, or as `aurora init` takes
            it, `"classification"`. A name is looked up first; a `Path` is always a file.
        overrides: `["training.epochs=1"]`, see `override`.

    Raises:
        UserError: there is no such recipe, it cannot be read, or a value is wrong; one line for each mistake.
    """
    found = find_recipe(recipe)
    return validate(override(found.values(), overrides), found.source)


def override(
    data: Any, overrides: Sequence[str], kinds: Sequence[tuple[str, type[BaseModel]]] = (("", Recipe),)
) -> Any:
    """A recipe's plain values, not validated yet, changed in place as the overrides say.

    Args:
        data: the values.
        overrides: `key=value` with dotted keys, such as `training.epochs=1`. Values are YAML without comments; of a
            field that takes texts alone, they are taken as they stand, unless they are null, a list or in quotes.
        kinds: what the values may be, each behind what its keys begin with: they tell which fields take texts.

    Raises:
        UserError: an override is wrong.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    for one in overrides if isinstance(data, dict) else ():
        key, equals, text = one.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise UserError(f"'{one}' is not of the form key=value, such as training.epochs=1")
        known = {takes_text(kind, key.removeprefix(start)) for start, kind in kinds if key.startswith(start)}
        set_field(data, key, yaml_text.parse_typed(text, f"'{one}'", is_text=known - {None} == {True}))
    return data


def name_of(section: str, data: Any) -> Any:
    """The name that a section of a recipe's plain values has (`model`, `task`, `method`), or None."""
    found = data.get(section) if isinstance(data, Mapping) else None
    return found.get("name") if isinstance(found, Mapping) else found


def is_result(value: Any) -> bool:
    """Whether a value that was read from a file is the result of a run."""
    return isinstance(value, Mapping) and {"schema", "recipe", "metric"} <= value.keys()


def task_name(data: Any) -> Any:
    """The name of the task in a recipe's plain values, or None."""
    return name_of("task", data)


def title_of(data: Any) -> str:
    """What results call the task in a recipe's plain values."""
    name = str(task_name(data))
    return own_task(OWN[name], data["task"]).name if name in OWN and isinstance(data["task"], Mapping) else name


def validate(data: Any, source: str) -> Recipe:
    """A recipe from plain values, as YAML or JSON gives them; `source` names them in errors.

    Raises:
        UserError: one line for each mistake, with the dotted field, the value and what is allowed.
    """
    if task_name(data) == DREAMBOOTH.name:
        raise UserError(f"{source}: task.name: '{DREAMBOOTH.name}' is only for `aurora train` and `aurora reproduce`")
    return validate_as(Recipe, data, source)


def validate_as(kind: type[AnyRecipe], data: Any, source: str) -> AnyRecipe:
    """A recipe of the given kind from plain values; see `validate`."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields, such as `model: minilm-l6`")
    with_defaults = {name for name, field in kind.model_fields.items() if isinstance(field.default, BaseModel)}
    given = {name: value for name, value in data.items() if value is not None or name not in with_defaults}  # empty
    return validated(kind, given, source)


def set_field(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a field of a recipe's plain values, by its dotted name.

    Raises:
        UserError: what stands before a dot has no fields.
    """
    *sections, last = key.split(".")
    here = data
    for place, name in enumerate(sections):
        if (rest := ".".join((*sections[place:], last))) in here:  # a name with dots, as those in a study's `space`
            here[rest] = value
            return
        below = here.get(name)
        if below is None:
            below = here[name] = {}
        elif isinstance(below, str) and name in ("method", "model", "task"):
            below = here[name] = {"name": below}
        if isinstance(below, list):
            raise UserError(f"'{key}': {name} is a list, of which key=value cannot change a part: edit the file")
        if not isinstance(below, dict):
            raise UserError(f"'{key}': {name} is {below!r:.40}, which has no fields")
        here = below
    here[last] = value
