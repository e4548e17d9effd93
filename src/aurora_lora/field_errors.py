"""What pydantic finds wrong with the fields of a file, in plain words: one line for each mistake.

The words of our own validators have their place by what they raise:

- a `ValueError` is a sentence, which stands behind the field;
- a `PydanticCustomError` of the type `below` may begin with the name of a field of the section (`r=0 is not allowed`);
- one of the type `unknown` goes on after "... is an", as those of `errors.unknown` do;
- one of any other type says what the value must be (`a list of names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError, unknown

Model = TypeVar("Model", bound=BaseModel)
_OF_A_SIZE = {"String": "a text", "Tuple": "a list", "List": "a list", "Dictionary": "a section"}


def validated(kind: type[Model], data: Any, source: str) -> Model:
    """A model from plain values; `source` names them in errors.

    Raises:
        UserError: one line for each mistake, with the dotted field, the value and what is allowed.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in lines(error, kind))) from error


def lines(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """One line for each mistake that was found in the values of a model."""
    found: dict[tuple[str | int, ...], tuple[_Place, list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        place = _place(kind, detail["loc"])
        found.setdefault(place.path, (place, []))[1].append(detail)
    for path, (place, details) in found.items():
        # What is wrong within a value is the mistake, not that the whole value is of no other member of a union.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in found):
            yield _line(place, [one for one in details if one["type"] == "value_error"] or details)


def allowed(detail: ErrorDetails) -> str:
    """What a value must be, behind "it must be"."""
    if detail["type"] in ("model_type", "dict_type"):
        return "a section with fields"
    if size := re.match(r"(\w+) should have (at (?:least|most) \S+ \w+)", detail["msg"]):
        return f"{_OF_A_SIZE[size[1]]} of {size[2]}"
    in_quotes = detail["type"] == "string_type" and isinstance(detail["input"], int | float)
    return detail["msg"].removeprefix("Input should be ") + (" (in quotes it is one)" if in_quotes else "")


def _line(place: _Place, details: Sequence[ErrorDetails]) -> str:
    """A mistake; there are several details where a value is of no member of a union."""
    kind, value, text = details[0]["type"], details[0]["input"], details[0]["msg"]
    if kind == "below" and re.match(r"[\w.]+[=:]", text):
        return f"{place.field}.{text}".lstrip(".")
    if kind == "extra_forbidden":
        text = unknown("field", place.known, str(place.path[-1]))
    elif kind == "missing":
        text = "this field must be given"
    elif kind == "unknown":
        text = f"{value!r} is an {text}"
    elif kind == "value_error":
        text = text.removeprefix("Value error, ")
    elif kind != "below":
        text = f"{value!r} is not allowed: it must be {' or '.join(dict.fromkeys(map(allowed, details)))}"
    return f"{place.field}: {text}" if place.field else text


# ---------------------------------------------------------------- where it is


@dataclass(frozen=True)
class _Place:
    """Where a value is in a file."""

    path: tuple[str | int, ...]
    """The names of fields and the numbers of items that lead there."""
    field: str
    """The path as it is shown: with the numbers of sections, and without those of plain values."""
    known: Sequence[str]
    """The fields of the section that it is in."""


def _place(kind: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    """Where pydantic's `loc` leads: that has the member of a union that was tried ("constrained-int") as well."""
    types: Sequence[Any] = [kind]
    path: list[str | int] = []
    shown: list[str] = []
    known: list[str] = []
    is_member = False
    for part in loc:
        if len(types) > 1 and not is_member:
            is_member = True
            continue
        is_member = False
        known = [name for one in types if is_section(one) for name in _fields(one)]
        types = [below for one in types for below in _below(one, part)]
        path.append(part)
        if isinstance(part, str) or any(map(is_section, types)):
            shown.append(str(part))
    return _Place(tuple(path), ".".join(shown), known)


def _below(kind: Any, part: str | int) -> list[Any]:
    """The types that the field or item of this name or number may have."""
    if is_section(kind):
        return members(_fields(kind).get(str(part)))
    of = [one for one in get_args(kind) if one is not Ellipsis]
    if not of or isinstance(part, int) == (get_origin(kind) in (dict, Mapping)):
        return []
    return members(of[-1])


def members(kind: Any) -> list[Any]:
    """The types that a union joins, or the one that it is; without None, which pydantic does not try as one."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for each in get_args(kind) for one in members(each)]
    return [] if kind in (None, NoneType) else [kind]


def is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    """Whether a type is a section of a recipe."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(section: type[BaseModel]) -> dict[str, Any]:
    """The fields of a section by their names in a file, with their types."""
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
