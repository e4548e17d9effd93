"""Opens data of the user's own through `datasets`: memory-mapped, and each mistake in it as one plain line."""

from __future__ import annotations

import contextlib
import difflib
import glob
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, UserError
from ...extras import extra
from .._loading import NO_CODE, reason
from ..hub import HubData
from .broken import check_text, csv_options, why_broken

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
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""The splits, and the names that they are looked for under."""
_REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class OwnData:
    """Where the data is: the fields of a recipe's `task` of these names."""

    data: str
    validation_data: str | None = None
    test_data: str | None = None
    config: str | None = None
    revision: str | None = None
    encoding: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None

    @property
    def title(self) -> str:
        """A short name: of a file or a folder without the folders that it is in."""
        is_repo = _REPO.fullmatch(self.data) and not Path(self.data).exists()
        return self.data if is_repo else Path(self.data).name


@dataclass(frozen=True)
class Piece:
    """A split as it came.

    Args:
        data: its rows.
        name: for people.
    """

    data: datasets.Dataset
    name: str

    def need(self, column: str, field: str) -> None:
        """Raise a UserError where there is no such column; `field` is where the recipe names it."""
        there = self.data.column_names
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1) or [
                one for one in there if one.casefold() == column.casefold()
            ]
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"task.{field}: {self.name} has no column '{column}' (it has {', '.join(map(repr, there))}{hint})"
            )

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Columns of each row, a batch at a time; an image as its file: `bytes` or `path`.

        Raises:
            UserError: what should be text is none.
        """
        data = as_files(self.data.select_columns(list(columns)))
        try:
            for batch in data.iter(batch_size=1000):
                yield from ({name: batch[name][at] for name in columns} for at in range(len(batch[columns[0]])))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name} has text that is no UTF-8: {error}") from error


def as_files(data: datasets.Dataset) -> datasets.Dataset:
    """The same, with each image as its file: `bytes` or `path`."""
    with extra("train"):
        from datasets import Image
    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data


class Pieces(dict[str, Piece]):
    """The splits that there are, `train` always; `files` has the sha256 of each file or folder, or the commit."""

    def __init__(self, pieces: Mapping[str, Piece], files: Mapping[str, str]) -> None:
        super().__init__(pieces)
        self.files = dict(files)


def open_data(own: OwnData) -> Pieces:
    """Open the data.

    Raises:
        UserError: it cannot be found, read or understood; or a split that is asked for is not there.
    """
    files: dict[str, str] = {}
    _check_used(own)
    main = _open(own, own.data, "data", files)
    found = {"train": _split_of(main, own.data, "train", own.train_split)}
    for name, given in (("validation", own.validation_data), ("test", own.test_data)):
        wanted = getattr(own, f"{name}_split")
        if given is not None:
            source = _open(own, given, f"{name}_data", files)
            found[name] = _split_of(source, given, name, wanted)
        elif wanted is not None or any(each in main and len(main) > 1 for each in SPLITS[name]):
            found[name] = _split_of(main, own.data, name, wanted)
    for name, piece in found.items():
        if not len(piece.data):
            raise UserError(f"{piece.name} has no rows")
        if any(piece.data is other.data for key, other in found.items() if key != name):
            raise UserError(f"task.{name}_split: {piece.name} is another split already")
    return Pieces(found, files)


def _check_used(own: OwnData) -> None:
    """Raise a UserError for a field that nothing of what is opened has a use for."""
    given = [Path(one).expanduser() for one in (own.data, own.validation_data, own.test_data) if one is not None]
    for field, what, unused in (("config", "a folder or ", Path.is_file), ("revision", "", Path.exists)):
        value = getattr(own, field)
        if value is not None and all(map(unused, given)):
            raise UserError(f"task.{field}: '{value}' goes with {what}a data set of the hub, and {own.data} is here")


def open_file(file: str, encoding: str | None) -> Piece:
    """The rows of a file that no recipe names, or of a folder, or the data set's split `train`.

    Raises:
        ArgumentError: as the UserError of `open_data`, of the arguments `file` and `encoding`.
    """
    try:
        return open_data(OwnData(file, encoding=encoding))["train"]
    except UserError as error:
        raise ArgumentError(str(error).removeprefix("task.data: ").replace("task.encoding", "`encoding`")) from error


def _split_of(source: datasets.DatasetDict, given: str, name: str, wanted: str | None) -> Piece:
    """The split that a recipe asks for, or the one that is called so, or the only one."""
    names = SPLITS[name] if wanted is None else (wanted,)
    chosen = next((each for each in names if each in source), None)
    if chosen is None and wanted is None and len(source) == 1:
        chosen = next(iter(source))
    if chosen is None:
        raise UserError(f"task.{name}_split: {given} has no split '{names[0]}' (it has {', '.join(source)})")
    return Piece(source[chosen], given if len(source) == 1 else f"{given}, {chosen}")


# ---------------------------------------------------------------- files, folders, the hub


def _open(own: OwnData, given: str, field: str, files: dict[str, str]) -> datasets.DatasetDict:
    path = Path(given).expanduser()
    try:
        if path.is_file():
            files[given] = _digest(path)
            return _file(path, own.encoding, field)
        if path.is_dir():
            files[given] = _folder_digest(path)
            return _folder(path, own.config, own.encoding)
    except OSError as error:
        raise UserError(f"task.{field}: {given}: {error.strerror or error}") from error
    if path.suffix.lower() in FORMATS or not _REPO.fullmatch(given):
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise UserError(f"task.{field}: '{given}' is no file, no folder and no data set of the hub (owner/name){hint}")
    hub = HubData(given, own.config, own.revision)
    found, commit = hub.load_all()
    copy = hub.copy()
    files[given] = commit if copy is None else _folder_digest(copy)
    return found


def _file(path: Path, encoding: str | None, field: str) -> datasets.DatasetDict:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"task.{field}: {path}: '{path.suffix}' is not one of {', '.join(FORMATS)}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    options = _options(path, kind, encoding)
    return _load(path, kind, data_files={"train": glob.escape(str(path))}, encoding=encoding, options=options)


def _options(path: Path, kind: str, encoding: str | None) -> dict[str, Any]:
    """How `datasets` is to read a file of a format."""
    if kind == "csv":
        return csv_options(path, encoding)
    if kind == "json":
        check_text(path, encoding)
        return {} if encoding is None else {"encoding": encoding}
    return {}


def _folder(path: Path, config: str | None, encoding: str | None) -> datasets.DatasetDict:
    """What `save_to_disk` wrote; files of one format, each read as it is alone; or what else `datasets` knows, such as
    images by class, or a data set whose README.md tells which files are what.
    """
    with extra("train"):
        import datasets
        from datasets.data_files import FILES_TO_IGNORE
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            found = datasets.load_from_disk(str(path))
        except Exception as error:
            raise UserError(f"{path} cannot be loaded: {reason(error)}") from error
        return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({"train": found})
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty")
    every = [file for file in _files(path) if file.name not in FILES_TO_IGNORE]
    tables = {file: kind for file in every if (kind := (FORMATS | PACKED).get(file.suffix.lower()))}
    images = sum(file.suffix.lower() in ImageFolder.EXTENSIONS for file in every)
    card = path / "README.md"
    if images > len(tables) or (card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8", "replace"))):
        return _load(path, str(path), name=config)
    if len(set(tables.values())) > 1:
        suffixes = sorted({file.suffix.lower() for file in tables})
        raise UserError(
            f"{path} has {', '.join(suffixes[:-1])} and {suffixes[-1]} files: the files of a folder have one format; "
            "or name them one by one, task.data=FILE and task.test_data=FILE"
        )
    if config is not None or not tables or PACKED.keys() & tables.values():
        return _load(path, str(path), name=config)
    (first, kind), *others = tables.items()
    options = _options(first, kind, encoding)
    for other, _ in others:
        if _options(other, kind, encoding) != options:
            raise UserError(
                f"{path}: {other.relative_to(path)} has another header or separator than {first.relative_to(path)}: "
                "name the files one by one, task.data=FILE and task.test_data=FILE"
            )
    splits = _by_split(path)
    named = {Path(file) for some in splits.values() for file in some}
    if left := [file for file in tables if file.resolve() not in named]:
        raise UserError(
            f"{path}: the name of {left[0].relative_to(path)} tells no split, as those of other files do: name the "
            "files one by one, task.data=FILE and task.test_data=FILE"
        )
    escaped = {name: [glob.escape(file) for file in some] for name, some in splits.items()}
    return _load(path, kind, data_files=escaped, encoding=encoding, options=options)


def _by_split(folder: Path) -> dict[str, list[str]]:
    """The files of a folder that have rows, by the splits that `datasets` sees in their names."""
    with extra("train"):
        from datasets.data_files import DataFilesDict, get_data_patterns
    base = glob.escape(folder.resolve().as_posix())
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    tables = {
        str(name): [file for file in some if Path(file).suffix.lower() in FORMATS] for name, some in found.items()
    }
    return {name: some for name, some in tables.items() if some}


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
        raise UserError(why_broken(path, encoding) or f"{path} cannot be loaded: {why}") from error
    return loaded


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


def _names_beside(path: Path) -> list[str]:
    try:
        return [each.name for each in path.parent.iterdir()]
    except OSError:
        return []


# ---------------------------------------------------------------- what it was


def sha256_of(given: str) -> str | None:
    """That of a file or of a folder's files; None where there is none that can be read."""
    path = Path(given).expanduser()
    try:
        if path.is_file():
            return _digest(path)
        return _folder_digest(path) if path.is_dir() else None
    except OSError:
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files; hidden ones, such as caches, are left out."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{_digest(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """Those of a folder that are neither hidden nor of a cache."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "cache-")) for part in path.relative_to(folder).parts)
    ]
