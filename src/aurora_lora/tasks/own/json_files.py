"""Rows of JSON files as they stand there, whatever Arrow takes their values for; and several files as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ...files import file_digest
from ..loading import reason
from .broken import json_rows

if TYPE_CHECKING:
    import datasets

Names = tuple[str, ...]
"""The names that lead to a field."""
_TIMES = ("timestamp", "date", "time", "duration")
_WHOLE = ("int64", "uint64")
_WORDS = {"string": "a text", "bool": "true or false", **dict.fromkeys((*_WHOLE, "float64"), "a number")}


class _Differ(Exception):  # noqa: N818
    """Two types that no type holds: of which field, and what they are."""


def as_one(
    splits: Mapping[str, Sequence[tuple[Path, datasets.Dataset]]], folder: Path, encoding: str | None
) -> datasets.DatasetDict:
    """The rows of files, each with the fields of all of them: null where a file has none.

    Dates are texts, as JSON has none, and whole numbers beyond a signed 64 bits are no floats.

    Args:
        splits: the files of each split, as `datasets` reads them.
        folder: that they are in.
        encoding: of the files.

    Raises:
        UserError: a field is a text in one file and a number in another, say, or a whole number is too large.
    """
    with extra("train"):
        import datasets
    given = {path: data for files in splits.values() for path, data in files}
    try:
        written = {path: _as_written(path, data, encoding) for path, data in given.items()}
    except (ValueError, RecursionError) as error:  # what Arrow takes for JSON, and Python does not
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    every: dict[str, Any] = {}
    for path, features in written.items():
        try:
            every = _union(every, features)
        except _Differ:
            raise UserError(_difference(written, path, folder)) from None
    wanted = datasets.Features(every)
    made = {}
    for name, files in splits.items():
        parts = [data if _has(data, wanted) else _reread(path, wanted, encoding) for path, data in files]
        made[name] = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return datasets.DatasetDict(made)


def _has(data: datasets.Dataset, wanted: Any) -> bool:
    """Whether rows have these fields, in this order, also within objects."""
    there, asked = data.features.arrow_schema, wanted.arrow_schema
    return bool(there.names == asked.names and there.types == asked.types and data.features == wanted)


def _reread(path: Path, features: Any, encoding: str | None) -> datasets.Dataset:
    with extra("train"):
        import datasets
    # by which it is kept in the cache: the file's content, too
    found = {"file": str(path), "of": f"{file_digest(path)} {features}", "encoding": encoding, "names": tuple(features)}
    # of whole numbers `datasets` takes those of a signed 64 bits, but makes others of texts
    texts = _changed(features, lambda one, _: type(one)("string") if _is(one, "uint64") else one)
    try:
        rows = datasets.Dataset.from_generator(_rows, features=datasets.Features(texts), gen_kwargs=found)
        return rows if texts == features else rows.cast(features)
    except Exception as error:  # `datasets` raises many kinds, some of them its own
        raise UserError(f"{path} cannot be loaded: {reason(error.__cause__ or error)}") from error  # type: ignore[arg-type]


def _rows(file: str, of: str, encoding: str | None, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in json_rows(Path(file), encoding):
        yield {name: row.get(name) for name in names}


# ---------------------------------------------------------------- one file


def _as_written(path: Path, data: datasets.Dataset, encoding: str | None) -> dict[str, Any]:
    """The types of a file's fields that hold what is written there."""
    numbers = _numbers(path, encoding) if any(map(_is_beyond, data.data.columns)) else set()

    def exact(feature: Any, where: Names) -> Any:
        if str(feature.dtype).startswith(_TIMES):
            return type(feature)("string")
        return type(feature)("uint64") if feature.dtype == "float64" and where in numbers else feature

    return {name: _changed(feature, exact, (name,)) for name, feature in data.features.items()}


def _changed(feature: Any, change: Callable[[Any, Names], Any], where: Names = ()) -> Any:
    """A type in which each plain one is changed, given the names that lead to it."""
    if isinstance(feature, Mapping):
        return {name: _changed(one, change, (*where, name)) for name, one in feature.items()}
    if (inner := _inner(feature)) is not None:
        return _list_of(feature, _changed(inner, change, where))
    return change(feature, where) if hasattr(feature, "dtype") else feature


def _is_beyond(values: Any) -> bool:
    """Whether there is a float that may have been a whole number beyond a signed 64 bits."""
    with extra("train"):
        import pyarrow as pa
        import pyarrow.compute as pc
    if isinstance(values, pa.ChunkedArray):
        return any(map(_is_beyond, values.chunks))
    if pa.types.is_struct(values.type):
        return any(map(_is_beyond, values.flatten()))
    if pa.types.is_list(values.type):
        return _is_beyond(values.flatten())
    if not pa.types.is_floating(values.type):
        return False
    ends = pc.min_max(values).as_py()
    return any(end is not None and abs(end) >= 2**63 for end in ends.values())


def _numbers(path: Path, encoding: str | None) -> set[Names]:
    """The fields of which every number is a whole one, and some are beyond a signed 64 bits.

    Raises:
        UserError: one that no type of 64 bits holds, or none that holds the others of its field.
    """
    floats: set[Names] = set()
    least: dict[Names, int] = {}
    beyond: dict[Names, tuple[int, int]] = {}  # the largest, and its row
    for number, row in enumerate(json_rows(path, encoding), start=1):
        for where, value in _leaves(row, ()):
            if isinstance(value, float):
                floats.add(where)
            else:
                least[where] = min(value, least.get(where, 0))
                if not -(2**63) <= value < 2**63 and abs(value) > abs(beyond.get(where, (0, 0))[0]):
                    beyond[where] = value, number
    found = {where: one for where, one in beyond.items() if where not in floats}
    for where, (value, number) in found.items():
        if least[where] < 0 or value >= 2**64:
            raise UserError(_too_large(path, number, where, value))
    return set(found)


def _leaves(value: Any, where: Names) -> Iterator[tuple[Names, int | float]]:
    """The numbers in a value, with the fields that they are in."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _leaves(one, (*where, name))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


def why_too_large(path: Path, encoding: str | None) -> str | None:
    """Which row of a file that could not be loaded has a whole number that is too large; None if none is seen."""
    with suppress(ValueError, RecursionError):  # no JSON that can be judged
        for number, row in enumerate(json_rows(path, encoding), start=1):
            for where, value in _leaves(row, ()):
                if isinstance(value, int) and not -(2**63) <= value < 2**64:
                    return _too_large(path, number, where, value)
    return None


def _too_large(path: Path, row: int, where: Names, value: int) -> str:
    return (
        f"{path}, row {row}: '{'.'.join(where)}' is {value}, too large a whole number to be kept as it is: put the "
        "numbers of this field in quotes, as texts"
    )


# ---------------------------------------------------------------- several


def _union(first: Any, second: Any, where: Names = ()) -> Any:
    """The type that holds what either holds.

    Raises:
        _Differ: there is none.
    """
    if first == second or _is(second, "null"):
        return first
    if _is(first, "null"):
        return second
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        both = {name: _union(first[name], second[name], (*where, name)) for name in first if name in second}
        return {**first, **second, **both}
    if None not in (inner := (_inner(first), _inner(second))):
        return _list_of(first if isinstance(first, list) else second, _union(*inner, where))
    for one in (first, second):
        if type(one).__name__ == "Json":
            return one
    for kind in ("float64", "uint64"):
        numbers = (*_WHOLE, "float64")
        if any(_is(one, kind) for one in (first, second)) and all(_is(one, *numbers) for one in (first, second)):
            return type(first)(kind)
    raise _Differ(where, first, second)


def _is(feature: Any, *kinds: str) -> bool:
    return getattr(feature, "dtype", None) in kinds


def _inner(feature: Any) -> Any:
    """What a list is of; None for what is no list."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _list_of(feature: Any, inner: Any) -> Any:
    """A list of another type; for earlier versions of `datasets` it is a list itself."""
    return [inner] if isinstance(feature, list) else type(feature)(inner)


def _difference(written: Mapping[Path, Any], second: Path, folder: Path) -> str:
    """Which field of a file is of another type than that of one before it."""
    for first, features in written.items():
        try:
            _union(features, written[second])
        except _Differ as error:
            where, *kinds = error.args
            one, other = map(_word, kinds)
            names = first.relative_to(folder), second.relative_to(folder)
            return (
                f"{folder}: '{'.'.join(where)}' is {one} in {names[0]} and {other} in {names[1]}: it must be of one "
                "type in the files of a folder"
            )
    raise AssertionError(second)


def _word(feature: Any) -> str:
    if isinstance(feature, Mapping):
        return "an object"
    return "a list" if _inner(feature) is not None else _WORDS.get(getattr(feature, "dtype", ""), str(feature))
