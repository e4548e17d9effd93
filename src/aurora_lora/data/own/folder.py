"""Reads folders of files: which of what a folder can hold there is, and what is read of it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ..loading import reason
from .broken import check_text, is_utf8, marked, no_split, suffix_of
from .card_files import CARD, check_card_files
from .files import FORMATS, files_of, load, load_json, options_of
from .image_folders import IMAGES, more_suffixes, read_as_images, splits_of_images

if TYPE_CHECKING:
    import datasets

PACKED = {suffix: suffix for suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")}
"""Files that may hold tables, for `datasets` to see."""
_DATA = FORMATS | PACKED | {".txt": "text"}


def read_folder(path: Path, config: str | None, encoding: str | None) -> datasets.DatasetDict:
    """What `save_to_disk` wrote; files of one format, each read as it is alone; or what else `datasets` knows, such as
    images by class, or a data set whose README.md tells which files are what.
    """
    with extra("train"):
        from datasets.data_files import FILES_TO_IGNORE
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(path)
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty")
    every = [file for file in files_of(path) if file.name not in FILES_TO_IGNORE]
    check_card_files(path)
    card = path / CARD
    if card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8", "replace")):
        return _by_card(path, config)
    if config is not None:
        raise UserError(f"task.config: '{config}': {path} has no README.md with `configs`")
    tables = {
        file: kind
        for file in every
        if (kind := FORMATS.get(suffix_of(file)) or PACKED.get(file.suffix.lower())) is not None
    }
    known = {*ImageFolder.EXTENSIONS, *more_suffixes()}
    images, unread, texts = (_ending(every, suffixes) for suffixes in (known, IMAGES - known, {".txt"}))
    if len(images) > len(tables) or (unread and not tables and not texts):
        return _images(path, every, images, unread, known, encoding)
    return _tables(path, every, tables, encoding)


def _ending(files: Sequence[Path], suffixes: Collection[str]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in suffixes]


def _saved_to_disk(path: Path) -> datasets.DatasetDict:
    """What `save_to_disk` wrote."""
    with extra("train"):
        import datasets
    try:
        # a format is saved with it: tensors in place of values, and some of the columns
        found = datasets.load_from_disk(str(path)).with_format(None)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {reason(error)}") from error
    return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({"train": found})


def _by_card(path: Path, config: str | None) -> datasets.DatasetDict:
    """A data set whose README.md tells which files are what."""
    if glob.has_magic(str(path)):  # `datasets` takes the path for a pattern
        raise UserError(f"{path} has a README.md with `configs`, and *, ? or [ in its path: rename the folder")
    return load(path, str(path), name=config)


def _images(
    path: Path,
    every: Sequence[Path],
    images: Sequence[Path],
    unread: Sequence[Path],
    known: Collection[str],
    encoding: str | None,
) -> datasets.DatasetDict:
    """Images by class, or those that a table describes.

    Args:
        path: the folder.
        every: its files.
        images: those of them that are images.
        unread: those that are, and cannot be read.
        known: suffixes of images that can be read.
        encoding: of a table that describes them.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    described = [file for file in every if file.name in ImageFolder.METADATA_FILENAMES]
    of_classes = [file for file in unread if file.parent != path or not images]  # a logo beside them is no example
    if of_classes and not described:
        raise UserError(
            f"{of_classes[0]} cannot be read: Pillow has no reader of '{of_classes[0].suffix}' files here; convert "
            "them to .jpg, .png or .webp, say, or move them away"
        )
    _check_links(path, known)
    for file in described:
        _check_described(file, encoding)
    found = splits_of_images(path, images, described)
    # by the name of a configuration the cache keeps apart what another encoding has given
    apart = {} if is_utf8(encoding) else {"name": encoding}
    with read_as_images(known, encoding):
        return load(path, "imagefolder", data_files=found, **apart)


def _check_described(table: Path, encoding: str | None) -> None:
    """Raise a UserError where a table of images is not text of its encoding."""
    if table.suffix == ".csv":
        check_text(table, encoding)
    elif table.suffix == ".jsonl" and not is_utf8(encoding):
        raise UserError(f"task.encoding: '{encoding}': {table} is read as UTF-8: write it so, or as metadata.csv")


def _tables(
    path: Path, every: Sequence[Path], tables: Mapping[Path, str], encoding: str | None
) -> datasets.DatasetDict:
    """Files of one format, each read as it is alone; packed ones, texts and what else `datasets` knows, as it does.

    Args:
        path: the folder.
        every: its files.
        tables: the format of each that has rows.
        encoding: of the files.
    """
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
        if data and all(file.suffix.lower() == ".txt" for file in data):
            for file in data:
                check_text(file, encoding)
            return load(path, "text", data_files=_escaped(splits), options={"encoding": marked(encoding)})
        if tables and not is_utf8(encoding):
            packed = next(iter(tables))
            raise UserError(
                f"task.encoding: '{encoding}': what is in {packed} is read as UTF-8: unpack it, or write it so"
            )
        return load(path, str(path), data_files=_escaped(splits) if splits else None)
    kind = next(iter(tables.values()))
    options = _options_of_all(path, list(tables), kind, encoding)
    if kind == "json":
        return load_json(path.resolve(), splits, encoding, options)
    return load(path, kind, data_files=_escaped(splits), encoding=encoding, options=options)


def _options_of_all(folder: Path, tables: Sequence[Path], kind: str, encoding: str | None) -> dict[str, Any]:
    """How `datasets` is to read the files of a folder, all alike."""
    first, *others = tables
    options = options_of(first, kind, encoding)
    for other in others:
        if options_of(other, kind, encoding) != options:
            raise UserError(
                f"{folder}: {other.relative_to(folder)} has another header or separator than "
                f"{first.relative_to(folder)}: name the files one by one, task.data=FILE and task.test_data=FILE"
            )
    return options


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
    """What `datasets` calls a file of a folder: a link to a file keeps its own name."""
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
