"""JSON files: what stands there as it stands there, and several files as one, whatever fields each of them has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ...files import file_digest
from ..list_types import item_type
from ..loading import cause_of, reason
from .broken import is_list, json_rows

if TYPE_CHECKING:
    import datasets

Names = tuple[str, ...]
"""The names that lead to a field."""
_TIMES = ("timestamp", "date", "time", "duration")
_NUMBERS = ("int64", "float64")
_WORDS = {"string": "a text", "bool": "true or false", **dict.fromkeys(_NUMBERS, "a number")}


class _Differ(Exception):  # noqa: N818
    """Two types that no type holds: of which field, and what they are."""


def from_rows(files: Mapping[str, Sequence[str]], encoding: str | None) -> datasets.DatasetDict:
    """The rows of files as Python's own reader has them, with the fields of all of them.

    Raises:
        UserError: a file cannot be read.
    """
    with extra("train"):
        import datasets
        import pyarrow
    made = {}
    for name, some in files.items():
        rows = [row for file in some for row in json_rows(Path(file), encoding)]
        names = dict.fromkeys(field for row in rows for field in row)
        try:  # of all rows: `datasets` takes the types of the first ones
            table = pyarrow.Table.from_pylist([{field: row.get(field) for field in names} for row in rows])
        except pyarrow.ArrowException as error:
            raise UserError(f"{some[0]} cannot be loaded: {reason(error)}") from error
        made[name] = _reread(some, datasets.Features.from_arrow_schema(table.schema), encoding)
    return datasets.DatasetDict(made)


def as_they_stand(
    loaded: datasets.DatasetDict, files: Mapping[str, Sequence[str]], encoding: str | None
) -> datasets.DatasetDict:
    """The loaded rows, with what Arrow takes for times in JSON, which has none, as the texts that stand there; and with
    what `datasets` changes where it rewrites rows, see `_is_rewritten`.

    Args:
        loaded: as `datasets` reads the files.
        files: of each split.
        encoding: of the files.

    Raises:
        UserError: a file cannot be read again.
    """
    with extra("train"):
        import datasets
    made = {}
    for name, data in loaded.items():
        wanted = datasets.Features(_dates_as_text(data.features))
        is_same = wanted == data.features and not _is_rewritten(wanted, files[name], encoding)
        made[name] = data if is_same else _reread(files[name], wanted, encoding)
    return datasets.DatasetDict(made)


def as_one(
    splits: Mapping[str, Sequence[tuple[Path, datasets.Dataset]]], folder: Path, encoding: str | None
) -> datasets.DatasetDict:
    """The rows of files, each with the fields of all of them: null where a file has none. Dates are texts.

    Args:
        splits: the files of each split, as `datasets` reads them.
        folder: that they are in.
        encoding: of the files.

    Raises:
        UserError: a field is a text in one file and a number in another, say, or a file cannot be read again.
    """
    with extra("train"):
        import datasets
    written = {path: _dates_as_text(data.features) for files in splits.values() for path, data in files}
    every: dict[str, Any] = {}
    for path, features in written.items():
        try:
            every = _union(every, features)
        except _Differ:
            raise UserError(_difference(written, path, folder)) from None
    wanted = datasets.Features(every)
    made = {}
    for name, files in splits.items():
        parts = [
            data
            if _has(data, wanted) and not _is_rewritten(wanted, [str(path)], encoding)
            else _reread([str(path)], wanted, encoding)
            for path, data in files
        ]
        made[name] = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return datasets.DatasetDict(made)


def _has(data: datasets.Dataset, wanted: Any) -> bool:
    """Whether rows have these fields, in this order, also within objects."""
    there, asked = data.features.arrow_schema, wanted.arrow_schema
    return bool(there.names == asked.names and there.types == asked.types and data.features == wanted)


def _is_rewritten(features: Any, files: Sequence[str], encoding: str | None) -> bool:
    """Whether `datasets` has written the rows anew before it read them: where some value is of mixed type, which it
    keeps as JSON, and where the file is a list. Then texts that read as JSON are what they read as, "42" a number, and
    numbers have ten digits behind the point.
    """
    if is_json(features):
        return True
    return "double" in str(features.arrow_schema) and any(is_list(Path(file), encoding) for file in files)


def is_json(feature: Any) -> bool:
    """Whether a type is JSON, or has such in it."""
    if isinstance(feature, Mapping):
        return any(map(is_json, feature.values()))
    inner = item_type(feature)
    return _names_json(feature) if inner is None else is_json(inner)


def _names_json(feature: Any) -> bool:
    return type(feature).__name__ == "Json"  # which earlier versions of `datasets` do not have


def _reread(files: Sequence[str], features: datasets.Features, encoding: str | None) -> datasets.Dataset:
    with extra("train"):
        import datasets
    # by which it is kept in the cache: their content, too; a list would be a source of data
    found = {"files": tuple(files), "of": tuple(file_digest(Path(file)) for file in files), "names": tuple(features)}
    mixed = {name: feature for name, feature in features.items() if is_json(feature)}
    given = {**found, "encoding": encoding, **({"mixed": mixed} if mixed else {})}
    try:
        return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=given)
    except Exception as error:  # `datasets` raises many kinds, some of them its own
        where = files[0] if len(files) == 1 else Path(files[0]).parent
        raise UserError(f"{where} cannot be loaded: {reason(cause_of(error))}") from error


def _rows(
    files: Sequence[str],
    of: Sequence[str],
    encoding: str | None,
    names: Sequence[str],
    mixed: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    for file in files:
        for row in json_rows(Path(file), encoding):
            found = {name: row.get(name) for name in names}
            yield {**found, **{name: as_json(found[name], feature) for name, feature in (mixed or {}).items()}}


def as_json(value: Any, feature: Any) -> Any:
    """A value with the JSON of what its type keeps as JSON: a text that reads as such would be taken for it."""
    if _names_json(feature):
        return None if value is None else json.dumps(value, ensure_ascii=False)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: as_json(value.get(name), one) for name, one in feature.items()}
    if isinstance(value, list):
        return [as_json(one, item_type(feature)) for one in value]
    return value


def _dates_as_text(feature: Any) -> Any:
    """A type, or the types of fields, with texts for times."""
    if isinstance(feature, Mapping):
        return {name: _dates_as_text(one) for name, one in feature.items()}
    if (inner := item_type(feature)) is not None:
        return _list_of(feature, _dates_as_text(inner))
    return type(feature)("string") if str(getattr(feature, "dtype", "")).startswith(_TIMES) else feature


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
    if None not in (inner := (item_type(first), item_type(second))):
        return _list_of(first if isinstance(first, list) else second, _union(*inner, where))
    for one in (first, second):
        if _names_json(one):
            return one
    if all(_is(one, *_NUMBERS) for one in (first, second)):
        return type(first)("float64")
    raise _Differ(where, first, second)


def _is(feature: Any, *kinds: str) -> bool:
    return getattr(feature, "dtype", None) in kinds


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
    return "a list" if item_type(feature) is not None else _WORDS.get(getattr(feature, "dtype", ""), str(feature))
