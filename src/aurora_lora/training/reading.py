"""Recipes from files and plain values: validated once, and one line for each mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import UserError, unknown
from ..tasks.dreambooth import DREAMBOOTH
from ..tasks.own.kinds import OWN
from . import yaml_text
from .own_section import own_task
from .recipe import Recipe, RunRecipe

AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` with dotted keys, such as `training.epochs=1`; values are YAML.

    Raises:
        UserError: the file cannot be read, or a value is wrong; one line for each mistake.
    """
    return validate(override(yaml_text.read(Path(path)), overrides), str(path))


def override(data: Any, overrides: Sequence[str]) -> Any:
    """A recipe's plain values, not validated yet, changed in place as the overrides say.

    Raises:
        UserError: an override is wrong.
    """
    for one in overrides if isinstance(data, dict) else ():
        key, equals, text = one.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise UserError(f"'{one}' is not of the form key=value, such as training.epochs=1")
        set_field(data, key, yaml_text.parse(text, f"'{one}'"))
    return data


def name_of(section: str, data: Any) -> Any:
    """The name that a section of a recipe's plain values has (`model`, `task`, `method`), or None."""
    found = data.get(section) if isinstance(data, Mapping) else None
    return found.get("name") if isinstance(found, Mapping) else found


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
    """As `validate`, a recipe of any kind."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields, such as `model: minilm-l6`")
    with_defaults = {name for name, field in kind.model_fields.items() if isinstance(field.default, BaseModel)}
    given = {name: value for name, value in data.items() if value is not None or name not in with_defaults}  # empty
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _lines(error, kind))) from error


def set_field(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a field of a recipe's plain values, by its dotted name.

    Raises:
        UserError: what stands before a dot has no fields.
    """
    *sections, last = key.split(".")
    here = data
    for name in sections:
        below = here.get(name)
        if below is None:
            below = here[name] = {}
        elif isinstance(below, str) and name in ("method", "model", "task"):
            below = here[name] = {"name": below}
        if not isinstance(below, dict):
            raise UserError(f"'{key}': {name} is {below!r}, which has no fields")
        here = below
    here[last] = value


def _lines(error: ValidationError, kind: type[RunRecipe]) -> Iterator[str]:
    """One line for each field that is wrong."""
    sections = _sections(kind)
    fields = {*_names(kind), *(name for section in sections.values() for name in section.model_fields)}
    problems: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # pydantic adds the member of a union that it tried ("constrained-int") to the path
        path = [str(part) for part in detail["loc"] if str(part) in fields or detail["type"] == "extra_forbidden"]
        problems.setdefault(".".join(path), []).append(detail)
    for field, details in problems.items():
        what = _what(details[0], kind, sections)
        if details[0]["type"] == "task" or (details[0]["type"] == "method" and re.match(r"\w+[=:]", what)):
            yield f"{field}.{what}".lstrip(".")  # the message starts with the option's name
        else:
            yield " or ".join([f"{field}: {what}", *(_allowed(detail) for detail in details[1:])])


def _what(detail: ErrorDetails, kind: type[RunRecipe], sections: Mapping[str, type[BaseModel]]) -> str:
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        section: type[BaseModel] = kind
        for part in detail["loc"][:-1]:
            section = sections.get(str(part), section)
        return unknown("field", _names(section), str(detail["loc"][-1]))
    if detail["type"] == "missing":
        return "this field must be given"
    if detail["type"] in ("method", "task"):
        return detail["msg"]
    if detail["type"] == "plain":
        return f"{value!r} is an {detail['msg']}"
    return f"{value!r} is not allowed: it must be {_allowed(detail)}"


def _allowed(detail: ErrorDetails) -> str:
    if detail["type"] == "model_type":
        return "a section with fields"
    return detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _names(section: type[BaseModel]) -> list[str]:
    """The names that a section's fields have in a file."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(kind: type[RunRecipe]) -> dict[str, type[BaseModel]]:
    """The fields of a recipe that are sections, by name."""
    return {
        name: part
        for name, field in zip(_names(kind), kind.model_fields.values(), strict=True)
        for part in (field.annotation, *get_args(field.annotation))
        if isinstance(part, type) and issubclass(part, BaseModel)
    }
