"""Rows of conversations as `datasets` holds them: in types that Arrow has, and in a cache."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...chat_template import without_none
from ...files import file_digest
from ..list_types import item_type
from .chat import with_text
from .json_files import as_json, is_json

if TYPE_CHECKING:
    import datasets

_OBJECTS = {"messages": 2, "prompt": 2, "completion": 2, "tools": 1, "chat_template_kwargs": 1}
"""Columns that the template writes, and how deep objects have to be in them for one to be written with every field."""


def as_given(split: datasets.Dataset) -> datasets.Dataset:
    """The split with each tool call, and each tool, of the fields that it was given, and not with those of all others.

    What Arrow holds as objects has every field in every row: the template would write them as null. What is held as
    JSON is without nulls, too, as it is when a row is asked: which of the two it is depends on the other rows.
    """
    try:
        from datasets import Features, Json, List
    except ImportError:  # an earlier version, which has no other way to hold them
        parts = [name for name, feature in split.features.items() if name in _OBJECTS and _has_parts(feature)]
        return split.map(lambda row: {name: _as_asked(row[name]) for name in parts}) if parts else split
    features = split.features
    several = {name: features[name] for name, least in _OBJECTS.items() if _depth(features.get(name)) >= least}
    held = {name: Json() if item_type(feature) is None else List(Json()) for name, feature in several.items()}
    names = [name for name in _OBJECTS if name in held or _is_of(Json, features.get(name))]
    if not names:
        return split
    return mapped(split, lambda row: {name: _as_asked(row[name]) for name in names}, Features({**features, **held}))


def _has_parts(messages: Any) -> bool:
    """Whether a column has messages whose content is a list."""
    message = item_type(messages)
    return isinstance(message, Mapping) and item_type(message.get("content")) is not None


def _as_asked(value: Any) -> Any:
    """Without nulls, and messages with one text each."""
    value = without_none(value)
    if not isinstance(value, list):
        return value
    return [with_text(one) if isinstance(one, Mapping) and "role" in one else one for one in value]


def mapped(
    split: datasets.Dataset, made: Callable[[Any], dict[str, Any]], features: Any, gone: Sequence[str] = ()
) -> datasets.Dataset:
    """`split.map(made)`, with each value of what is kept as JSON as it stands: `datasets` would take a text in it that
    reads as JSON for that, and round numbers.

    Args:
        split: the rows.
        made: new columns of a row.
        features: of all columns then.
        gone: columns that are removed.
    """
    mixed = {name: feature for name, feature in features.items() if is_json(feature)}

    def row_as_json(row: Any) -> dict[str, Any]:
        found = made(row)
        return {**found, **{name: as_json({**row, **found}.get(name), feature) for name, feature in mixed.items()}}

    return split.map(row_as_json, features=features, remove_columns=list(gone))


def _is_of(kind: type, feature: Any) -> bool:
    """Whether a column, or what its lists are of, is of such a type."""
    return isinstance(feature, kind) or isinstance(item_type(feature), kind)


def _depth(feature: Any) -> int:
    """How many objects are within each other; what is held as JSON may be one."""
    if isinstance(feature, Mapping):
        return 1 + max(map(_depth, feature.values()), default=0)
    inner = item_type(feature)
    return int(is_json(feature)) if inner is None else _depth(inner)


def made_by_this_version(data: datasets.Dataset) -> None:
    """Have the cache of `datasets` keep what is made of the rows apart by what makes it.

    It knows a function of a package by its name: after an upgrade it would give what an earlier version has made.
    """
    from datasets.fingerprint import Hasher

    data._fingerprint = Hasher.hash([data._fingerprint, _makers()])


@functools.cache
def _makers() -> str:
    """A digest of this package's source, and of the versions of what it prepares conversations with."""
    names = ("transformers", "tokenizers", "trl", "datasets")
    found = [f"{name} {importlib.metadata.version(name)}" for name in names if importlib.util.find_spec(name)]
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        found.append(file_digest(path))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def kept_types(features: Any, gone: Sequence[str], made: Sequence[str]) -> Any:
    """The types of the columns that stay, and of those that are made anew."""
    return type(features)({name: kind for name, kind in features.items() if name in made or name not in gone})


def renamed_types(features: Any, conversations: str) -> Any:
    """The types of the columns, with ShareGPT's `conversations` as `messages`, of `role` and `content`."""
    from datasets import List

    inner = item_type(features[conversations])
    if isinstance(inner, Mapping) and "from" in inner:
        inner = {"role": inner["from"], "content": inner.get("value", inner["from"])}
    return type(features)({**features, "messages": List(inner)})
