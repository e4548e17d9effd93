"""Rows of conversations as `datasets` holds them: in types that Arrow has, and in a cache."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import file_digest

if TYPE_CHECKING:
    import datasets

_MESSAGES = ("messages", "conversations", "prompt", "completion")
_OBJECTS = (*_MESSAGES, "tools", "chat_template_kwargs")
"""Columns that the template writes."""
_BARE = {"role", "content", "from", "value"}
"""The fields that every message has."""


def objects(features: Mapping[str, Any]) -> dict[str, Any]:
    """The columns whose objects Arrow holds with every field in every row, and types that hold each as it was given.

    None of them in an earlier version of `datasets`, which has no such types.
    """
    try:
        from datasets import Json, List
    except ImportError:
        return {}
    several = {name: features[name] for name in _OBJECTS if _has_others_fields(name, features.get(name))}
    return {name: Json() if isinstance(feature, Mapping) else List(Json()) for name, feature in several.items()}


def as_given(split: datasets.Dataset) -> datasets.Dataset:
    """The split with each tool call, tool and message of the fields that it was given, not with those of all others.

    What Arrow holds as objects has every field in every row: the template would write them as null.
    """
    features, held = split.features, objects(split.features)
    if not held:
        return split
    return split.map(
        lambda row: {name: _without_added(row[name], features[name]) for name in held},
        features=type(features)({**features, **held}),
    )


def with_objects(features: Any, gone: Sequence[str], made: Sequence[str]) -> Any:
    """The types of the columns that stay and of messages that are made anew; None where `datasets` may tell them."""
    held = [kind for kind in features.values() if type(getattr(kind, "feature", kind)).__name__ == "Json"]
    if not held:
        return None
    from datasets import Json, List

    return type(features)({**kept_types(features, gone, ()), **{name: List(Json()) for name in made}})


def _has_others_fields(name: str, feature: Any) -> bool:
    """Whether an object in a column can have fields that only others were given."""
    depth = _depth(feature)
    fields = getattr(feature, "feature", None)
    is_bare = depth == 1 and isinstance(fields, Mapping) and fields.keys() <= _BARE
    return depth > 0 and not (is_bare and name in _MESSAGES)


def _without_added(value: Any, feature: Any) -> Any:
    """The same without the fields that are None in what Arrow holds as objects; what is held as JSON stays."""
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: _without_added(one, feature[name]) for name, one in value.items() if one is not None}
    inner = getattr(feature, "feature", None)
    return value if inner is None or not isinstance(value, list) else [_without_added(one, inner) for one in value]


def _depth(feature: Any) -> int:
    """How many objects are within each other."""
    if isinstance(feature, Mapping):
        return 1 + max(map(_depth, feature.values()), default=0)
    inner = getattr(feature, "feature", None)
    return 0 if inner is None else _depth(inner)


def made_by_this_version(data: datasets.Dataset) -> None:
    """Have the cache of `datasets` keep what is made of the rows apart by what makes it.

    It knows a function of a package by its name: after an upgrade it would give what an earlier version has made.
    """
    from datasets.fingerprint import Hasher

    data._fingerprint = Hasher.hash([data._fingerprint, _makers()])


@functools.cache
def _makers() -> str:
    """Of this package's source, and the versions of what it prepares conversations with."""
    names = ("transformers", "tokenizers", "trl", "datasets")
    found = [f"{name} {importlib.metadata.version(name)}" for name in names if importlib.util.find_spec(name)]
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        found.append(file_digest(path))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def kept_types(features: Any, gone: Sequence[str], made: Sequence[str]) -> Any:
    """The types of the columns that stay, and of those that are made anew."""
    return type(features)({name: kind for name, kind in features.items() if name in made or name not in gone})


def without_none(value: Any, order: Callable[[Any], Iterable[str]] = list) -> Any:
    """The same without the fields that are None, which Arrow adds to objects where one row has them.

    Args:
        value: of a row.
        order: of the fields of each object: as they are, or `sorted`.
    """
    if isinstance(value, dict):
        return {name: without_none(value[name], order) for name in order(value) if value[name] is not None}
    return [without_none(one, order) for one in value] if isinstance(value, list) else value
