"""What pydantic finds wrong with the fields of a file, in plain words: one line for each mistake.

The words of our own validators have their place by what they raise:

- a `ValueError` is a sentence, which stands behind the field;
- a `PydanticCustomError` of the type `below` may begin with the name of a field of the section (`r=0 is not allowed`);
- one of the type `unknown` goes on after "... is an", as those of `errors.unknown` do;
- one of any other type says what the value must be (`a list of names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from .errors import SYNONYMS, UserError, unknown

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """Unknown fields are errors, a switch is no number nor a number a text, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


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
    found: dict[tuple[str | int, ...], tuple[list[str], list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        path, known = _place(detail, kind, data)
        found.setdefault(path, (known, []))[1].append(detail)
    for path, (known, details) in found.items():
        # What is wrong within a value is the mistake, not that the whole value is of no other member of a union.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in found):
            details = [one for one in details if one["type"] == "value_error"] or details
            yield _line(".".join(map(str, path)), details, [*_elsewhere(kind, path), *known])


def _place(detail: ErrorDetails, kind: type[BaseModel], data: Any) -> tuple[tuple[str | int, ...], list[str]]:
    """Pydantic's `loc` without the members of unions that were tried ("constrained-int"), and the fields there."""
    path: list[str | int] = []
    sections, known = [kind], list[str]()
    for part in detail["loc"]:
        fields = {field.alias or name: field for one in sections for name, field in one.model_fields.items()}
        is_item = isinstance(part, int) and isinstance(data, list | tuple)
        is_given = is_item or (isinstance(data, dict) and part in data)
        if is_given or part in fields:  # a name in place of a section stands for the section with that name
            path.append(part)
            known = list(fields)
            data = data[part] if is_given else None
            sections = _sections(fields[part].annotation) if part in fields else sections
    return tuple(path), known


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The sections that a field or its items may be."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [section for inner in get_args(kind) for section in _sections(inner)]


def _elsewhere(kind: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The dotted fields that have the last name of a path, or what it is a synonym of; first that of its section."""
    *section, name = map(str, path or ("",))
    found = [one for one in _dotted(kind) if one.rpartition(".")[2] == SYNONYMS.get(name, name)]
    return sorted(found, key=lambda one: one.split(".")[:-1] != section)


def _dotted(kind: type[BaseModel]) -> Iterator[str]:
    """Every field with the sections that it is in; of what is no section, those that its annotation names beside it."""
    for name, field in kind.model_fields.items():
        yield (shown := field.alias or name)
        for section in (*_sections(field.annotation), *(one for each in field.metadata for one in _sections(each))):
            yield from (f"{shown}.{inner}" for inner in _dotted(section))


def allowed(detail: ErrorDetails) -> str:
    """What a value must be, behind "it must be"."""
    if detail["type"] in ("model_type", "dict_type"):
        return "a section with fields"
    in_quotes = detail["type"] == "string_type" and isinstance(detail["input"], int | float)
    text = re.sub(r"^\w+ should have (.*?)(?: after .*)?$", r"of \1", detail["msg"].removeprefix("Input should be "))
    return text + (" (in quotes it is one)" if in_quotes else "")


def _line(field: str, details: list[ErrorDetails], known: list[str]) -> str:
    what, value, text = details[0]["type"], details[0]["input"], details[0]["msg"]
    if what == "below" and re.match(r"[\w.]+[=:]", text):
        return f"{field}.{text}".lstrip(".")
    if what == "extra_forbidden":
        text = unknown("field", known, field.rpartition(".")[2])
    elif what == "missing":
        text = "this field must be given"
    elif what == "unknown":
        text = f"{value!r} is an {text}"
    elif what == "value_error":
        text = text.removeprefix("Value error, ")
    elif what != "below":
        text = f"{value!r} is not allowed: it must be {' or '.join(dict.fromkeys(map(allowed, details)))}"
    return f"{field}: {text}" if field else text
