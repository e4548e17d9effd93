"""Reads files and folders through `datasets`: memory-mapped, and each mistake in them as one plain line."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ...files import expanded, file_digest
from ..loading import NO_CODE, cause_of, reason
from .broken import check_json, csv_options, is_blank, is_list, is_utf8, why_broken
from .json_files import as_one, as_they_stand, from_rows

if TYPE_CHECKING:
    import datasets

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""What `datasets` calls the formats of files, by their suffix."""


def read_file(path: Path, encoding: str | None, field: str) -> datasets.DatasetDict:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"task.{field}: {path}: '{path.suffix}' is not one of {', '.join(FORMATS)}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    options = options_of(path, kind, encoding)
    if kind == "json":
        return load_json(path, {"train": [str(path)]}, encoding, options)
    return load(path, kind, data_files={"train": glob.escape(str(path.absolute()))}, encoding=encoding, options=options)


def options_of(path: Path, kind: str, encoding: str | None) -> dict[str, Any]:
    """How `datasets` is to read a file of a format."""
    if kind == "csv":
        return csv_options(path, encoding)
    if kind == "json":
        check_json(path, encoding)
        return {} if encoding is None else {"encoding": encoding}
    return {}


def load(path: Path, kind: str, encoding: str | None = None, **more: Any) -> datasets.DatasetDict:
    with extra("train"):
        import datasets
    options = more.pop("options", {})
    try:
        with _no_log():
            loaded: datasets.DatasetDict = datasets.load_dataset(kind, **more, **options, **NO_CODE)
    except Exception as error:  # `datasets` raises many kinds, some of them its own
        why = reason(cause_of(error))
        if "corresponds to no data" in why:
            raise UserError(f"{path} has no rows") from error
        known = why_broken(path, encoding) if path.is_file() else None
        counted = re.sub(r" in row \d+$", "", why)  # by Arrow, from the start of a block of rows
        raise UserError(known or f"{path} cannot be loaded: {counted}") from error
    return loaded


def load_json(
    path: Path, splits: Mapping[str, Sequence[str]], encoding: str | None, options: Mapping[str, Any]
) -> datasets.DatasetDict:
    """The rows of JSON files, one by one where `datasets` cannot read them as one, by the fields of the first.

    Files without rows have none among others.
    """

    def at_once(path: Path, data_files: Mapping[str, Sequence[str]]) -> datasets.DatasetDict:
        every = [file for some in data_files.values() for file in some]
        if not is_utf8(encoding) and any(is_list(Path(file), encoding) for file in every):
            return from_rows(data_files, encoding)  # `datasets` takes a list for UTF-8
        escaped = {
            name: [glob.escape(str(Path(file).absolute())) for file in some] for name, some in data_files.items()
        }
        return load(path, "json", data_files=escaped, encoding=encoding, options=options)

    filled = {name: [file for file in some if not is_blank(Path(file), encoding)] for name, some in splits.items()}
    filled = {name: some or list(splits[name][:1]) for name, some in filled.items()}
    try:
        return as_they_stand(at_once(path, filled), filled, encoding)
    except UserError:
        if sum(map(len, filled.values())) == 1:
            raise
    one_by_one = {
        name: [(Path(file), at_once(Path(file), {"train": [file]})["train"]) for file in some]
        for name, some in filled.items()
    }
    return as_one(one_by_one, path, encoding)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """`datasets` logs what is wrong with a file before it raises it."""
    with extra("train"):
        from datasets.utils import logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


# ---------------------------------------------------------------- what it was


def sha256_of(given: str) -> str | None:
    """The sha256 of a file or of a folder's files; None where there is none that can be read."""
    path = expanded(given)
    try:
        if path.is_file():
            return file_digest(path)
        return folder_digest(path) if path.is_dir() else None
    except OSError:
        return None


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files; hidden ones, such as caches, are left out."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that are neither hidden nor a cache that `datasets` keeps beside what it saved."""

    def is_cache(path: Path) -> bool:
        return path.name.startswith("cache-") and (path.parent / "state.json").is_file()

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not is_cache(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
