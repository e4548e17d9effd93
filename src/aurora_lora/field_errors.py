"""What pydantic finds wrong with the fields of a file, in plain words: one line for each mistake.

The words of our own validators have their place by what they raise:

- a `ValueError` is a sentence, which stands behind the field;
- a `PydanticCustomError` of the type `below` may begin with the name of a field of the section (`r=0 is not allowed`);
- one of the type `unknown` goes on after "... is an", as those of `errors.unknown` do;
- one of any other type says what the value must be (`a list of names`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def validated(kind: type[Model], data: Any, source: str) -> Model:
    """A model from plain values; `source` names them in errors.

    Raises:
        UserError: one line for each mistake, with the dotted field, the value and what is allowed.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in lines(error, kind, data))) from error


def lines(error: ValidationError, kind: type[BaseModel], data: Any) -> Iterator[str]:
    """One line for each mistake that was found in values; there are several details where one is of no member of a
    union."""
    names = set(_names(kind))
    found: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail, data, names), []).append(detail)
    for path, details in found.items():
        # What is wrong within a value is the mistake, not that the whole value is of no other member of a union.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in found):
            details = [one for one in details if one["type"] == "value_error"] or details
            yield _line(".".join(map(str, path)), details, names)


def _path(detail: ErrorDetails, data: Any, names: set[str]) -> tuple[str | int, ...]:
    """Where a mistake is: pydantic's `loc` without the members of unions that were tried ("constrained-int")."""
    path: list[str | int] = []
    for part in detail["loc"]:
        is_item = isinstance(part, int) and isinstance(data, list | tuple)
        is_given = is_item or (isinstance(data, dict) and part in data)
        if is_given or part in names:  # a name in place of a section stands for the section with that name
            path.append(part)
            data = data[part] if is_given else None
    return tuple(path)


def allowed(detail: ErrorDetails) -> str:
    """What a value must be, behind "it must be"."""
    if detail["type"] in ("model_type", "dict_type"):
        return "a section with fields"
    in_quotes = detail["type"] == "string_type" and isinstance(detail["input"], int | float)
    text = re.sub(r"^\w+ should have (.*?)(?: after .*)?$", r"of \1", detail["msg"].removeprefix("Input should be "))
    return text + (" (in quotes it is one)" if in_quotes else "")


def _line(field: str, details: list[ErrorDetails], names: set[str]) -> str:
    what, value, text = details[0]["type"], details[0]["input"], details[0]["msg"]
    if what == "below" and re.match(r"[\w.]+[=:]", text):
        return f"{field}.{text}".lstrip(".")
    if what == "extra_forbidden":
        near = difflib.get_close_matches(field.rpartition(".")[2], names, n=1)
        text = f"unknown field; did you mean '{near[0]}'?" if near else "unknown field"
    elif what == "missing":
        text = "this field must be given"
    elif what == "unknown":
        text = f"{value!r} is an {text}"
    elif what == "value_error":
        text = text.removeprefix("Value error, ")
    elif what != "below":
        text = f"{value!r} is not allowed: it must be {' or '.join(dict.fromkeys(map(allowed, details)))}"
    return f"{field}: {text}" if field else text


def _names(kind: Any) -> Iterator[str]:
    """The fields of a model and of the sections in it, by their names in a file."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield field.alias or name
            yield from _names(field.annotation)
    for inner in get_args(kind):
        yield from _names(inner)
