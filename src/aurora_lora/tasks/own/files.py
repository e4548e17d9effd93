"""Reads files and folders through `datasets`: memory-mapped, and each mistake in them as one plain line."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ...files import expanded, file_digest
from ..loading import NO_CODE, reason
from .broken import check_json, csv_options, is_blank, is_list, is_utf8, no_split, suffix_of, why_broken
from .card_files import CARD, check_card_files
from .image_folders import IMAGES, more_suffixes, read_as_images, splits_of_images
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
PACKED = {suffix: suffix for suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")}
"""Files that may hold such ones, for `datasets` to see."""
_DATA = FORMATS | PACKED | {".txt": "text"}


def read_file(path: Path, encoding: str | None, field: str) -> datasets.DatasetDict:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"task.{field}: {path}: '{path.suffix}' is not one of {', '.join(FORMATS)}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    options = _options(path, kind, encoding)
    if kind == "json":
        return _load_json(path, {"train": [str(path)]}, encoding, options)
    return _load(
        path, kind, data_files={"train": glob.escape(str(path.absolute()))}, encoding=encoding, options=options
    )


def _options(path: Path, kind: str, encoding: str | None) -> dict[str, Any]:
    """How `datasets` is to read a file of a format."""
    if kind == "csv":
        return csv_options(path, encoding)
    if kind == "json":
        check_json(path, encoding)
        return {} if encoding is None else {"encoding": encoding}
    return {}


def read_folder(path: Path, config: str | None, encoding: str | None) -> datasets.DatasetDict:
    """What `save_to_disk` wrote; files of one format, each read as it is alone; or what else `datasets` knows, such as
    images by class, or a data set whose README.md tells which files are what.
    """
    with extra("train"):
        import datasets
        from datasets.data_files import FILES_TO_IGNORE
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            # a format is saved with it: tensors in place of values, and some of the columns
            found = datasets.load_from_disk(str(path)).with_format(None)
        except Exception as error:
            raise UserError(f"{path} cannot be loaded: {reason(error)}") from error
        return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({"train": found})
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty")
    every = [file for file in _files(path) if file.name not in FILES_TO_IGNORE]
    tables = {
        file: kind
        for file in every
        if (kind := FORMATS.get(suffix_of(file)) or PACKED.get(file.suffix.lower())) is not None
    }
    more = more_suffixes()
    known = {*ImageFolder.EXTENSIONS, *more}
    images = [file for file in every if file.suffix.lower() in known]
    unread = [file for file in every if file.suffix.lower() in IMAGES - known]
    check_card_files(path)
    card = path / CARD
    if card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8", "replace")):
        if glob.has_magic(str(path)):  # `datasets` takes the path for a pattern
            raise UserError(f"{path} has a README.md with `configs`, and *, ? or [ in its path: rename the folder")
        return _load(path, str(path), name=config)
    if config is not None:
        raise UserError(f"task.config: '{config}': {path} has no README.md with `configs`")
    texts = [file for file in every if file.suffix.lower() == ".txt"]
    if len(images) > len(tables) or (unread and not tables and not texts):
        described = [file for file in every if file.name in ImageFolder.METADATA_FILENAMES]
        of_classes = [file for file in unread if file.parent != path or not images]  # a logo beside them is no example
        if of_classes and not described:
            raise UserError(
                f"{of_classes[0]} cannot be read: Pillow has no reader of '{of_classes[0].suffix}' files here; convert "
                "them to .jpg, .png or .webp, say, or move them away"
            )
        _check_links(path, known)
        with read_as_images(more):
            return _load(path, "imagefolder", data_files=splits_of_images(path, images, described))
    if len(set(tables.values())) > 1:
        suffixes = sorted({file.suffix.lower() for file in tables})
        raise UserError(
            f"{path} has {', '.join(suffixes[:-1])} and {suffixes[-1]} files: the files of a folder have one format; "
            "or name them one by one, task.data=FILE and task.test_data=FILE"
        )
    _check_links(path, _DATA)
    data = [file for file in tables or every if suffix_of(file) in _DATA]
    splits = _by_split(path, data) if data else {}
    named = {file for some in splits.values() for file in some}
    if left := [file for file in data if str(_absolute(file, path)) not in named]:
        raise no_split(path, left[0])
    if not tables or PACKED.keys() & tables.values():
        for file in filter(_holds_csv, tables):
            raise UserError(f"{file} holds a CSV file: unpack it, or pack it as .csv.gz")
        return _load(path, str(path), data_files=_escaped(splits) if splits else None)
    (first, kind), *others = tables.items()
    options = _options(first, kind, encoding)
    for other, _ in others:
        if _options(other, kind, encoding) != options:
            raise UserError(
                f"{path}: {other.relative_to(path)} has another header or separator than {first.relative_to(path)}: "
                "name the files one by one, task.data=FILE and task.test_data=FILE"
            )
    if kind == "json":
        return _load_json(path.resolve(), splits, encoding, options)
    return _load(path, kind, data_files=_escaped(splits), encoding=encoding, options=options)


def _escaped(splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Patterns of these files alone."""
    return {name: [glob.escape(file) for file in some] for name, some in splits.items()}


def _holds_csv(packed: Path) -> bool:
    """Whether a file that only `datasets` can unpack has one, in which it would guess what the columns are."""
    with contextlib.suppress(zipfile.BadZipFile):
        names = zipfile.ZipFile(packed).namelist() if packed.suffix.lower() == ".zip" else [packed.stem]
        return any(FORMATS.get(Path(name).suffix.lower()) == "csv" for name in names)
    return False


def _by_split(folder: Path, data: Sequence[Path]) -> dict[str, list[str]]:
    """The files of a folder that have rows, `data`, by the splits that `datasets` sees in their names."""
    with extra("train"):
        from datasets.data_files import DataFilesDict, get_data_patterns
    base = glob.escape(folder.resolve().as_posix())
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    wanted = {str(_absolute(file, folder)) for file in data}
    splits = {str(name): [file for file in some if file in wanted] for name, some in found.items()}
    return {name: some for name, some in splits.items() if some}


def _absolute(file: Path, folder: Path) -> Path:
    """As `datasets` names a file of a folder: a link to a file keeps its own name."""
    return folder.resolve() / file.relative_to(folder)


def _check_links(folder: Path, suffixes: Collection[str]) -> None:
    """Raise a UserError for a folder in it that is a link and leads out of it to files of these suffixes: they would be
    left out."""
    inside = folder.resolve()

    def leads_to_some(path: Path) -> bool:
        if not path.is_symlink() or path.resolve().is_relative_to(inside):
            return False
        return any(suffix_of(file) in suffixes or file.suffix.lower() in suffixes for file in path.rglob("*"))

    for within, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if linked := next((path for name in folders if leads_to_some(path := Path(within, name))), None):
            raise UserError(f"{linked} is a link to a folder, which is not followed: copy what it leads to here")


def _load(path: Path, kind: str, encoding: str | None = None, **more: Any) -> datasets.DatasetDict:
    with extra("train"):
        import datasets
    options = more.pop("options", {})
    try:
        with _no_log():
            loaded: datasets.DatasetDict = datasets.load_dataset(kind, **more, **options, **NO_CODE)
    except Exception as error:  # `datasets` raises many kinds, some of them its own
        why = _cause(error)
        if "corresponds to no data" in why:
            raise UserError(f"{path} has no rows") from error
        known = why_broken(path, encoding) if path.is_file() else None
        raise UserError(known or f"{path} cannot be loaded: {why}") from error
    return loaded


def _load_json(
    path: Path, splits: Mapping[str, Sequence[str]], encoding: str | None, options: Mapping[str, Any]
) -> datasets.DatasetDict:
    """The rows of JSON files, one by one where `datasets` cannot read them as one, by the fields of the first.

    Files without rows have none among others.
    """

    def load(path: Path, data_files: Mapping[str, Sequence[str]]) -> datasets.DatasetDict:
        every = [file for some in data_files.values() for file in some]
        if not is_utf8(encoding) and any(is_list(Path(file), encoding) for file in every):
            return from_rows(data_files, encoding)  # `datasets` takes a list for UTF-8
        escaped = {
            name: [glob.escape(str(Path(file).absolute())) for file in some] for name, some in data_files.items()
        }
        return _load(path, "json", data_files=escaped, encoding=encoding, options=options)

    filled = {name: [file for file in some if not is_blank(Path(file), encoding)] for name, some in splits.items()}
    filled = {name: some or list(splits[name][:1]) for name, some in filled.items()}
    try:
        return as_they_stand(load(path, filled), filled, encoding)
    except UserError:
        if sum(map(len, filled.values())) == 1:
            raise
    one_by_one = {
        name: [(Path(file), load(Path(file), {"train": [file]})["train"]) for file in some]
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


def _cause(error: BaseException) -> str:
    """The first reason: `datasets` wraps it in errors that say nothing."""
    while (before := error.__cause__ or error.__context__) is not None and type(error).__name__.startswith("Dataset"):
        error = before
    return reason(error) if isinstance(error, Exception) else str(error)


# ---------------------------------------------------------------- what it was


def sha256_of(given: str) -> str | None:
    """That of a file or of a folder's files; None where there is none that can be read."""
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
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """Those of a folder that are neither hidden nor a cache that `datasets` keeps beside what it saved."""

    def is_cache(path: Path) -> bool:
        return path.name.startswith("cache-") and (path.parent / "state.json").is_file()

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not is_cache(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
