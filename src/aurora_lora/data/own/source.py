"""Opens data of the user's own: a file, a folder, or a data set of the hub; and finds its splits."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, UserError, abridged
from ...extras import extra
from ...files import check_links, expanded, file_digest, is_path, parse_json
from ..hub import HubData, check_inside
from ..loading import cause_of, reason
from ..vision import IMAGE_FILES, UNREAD, as_files

if TYPE_CHECKING:
    import datasets

FORMATS = dict.fromkeys((".csv", ".tsv", ".tab"), "csv") | dict.fromkeys((".json", ".jsonl", ".ndjson"), "json")
FORMATS |= {".parquet": "parquet", ".arrow": "arrow", ".txt": "text", ".xlsx": "excel"}
"""The formats of files, by their suffix; before one of `PACKED`, too."""
PACKED = (".gz", ".bz2", ".xz", ".zip")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""The splits, and the names that they are looked for under."""
UTF_8 = "utf-8-sig"
"""The encoding of files that name none; it leaves out the mark that some begin with."""
ROWS, ROWS_OF_IMAGES = 1000, 16
"""How many rows are in memory at a time when a table is read, and when its rows have images."""
Columns = Mapping[str, tuple[str, ...]]
"""The user's columns, by the field of a recipe's `task` that names them."""


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
    decimal_comma: bool | None = None
    skip_bad_rows: bool | None = None

    @property
    def title(self) -> str:
        """A short name: of a file or a folder without the folders that it is in."""
        return Path(self.data).name if is_path(self.data) else self.data


@dataclass(frozen=True)
class Piece:
    """A split as it came.

    Args:
        data: its rows.
        name: for people.
        folder: that a table is in, or that was given: where paths in it are looked for first; None of the hub.
        split_field: of a recipe, which takes another split in its place; None where there is no other.
        encoding: of its file.
        kept: the place of each row, for people, where some are left out.
    """

    data: datasets.Dataset
    name: str
    folder: Path | None = None
    split_field: str | None = None
    encoding: str | None = None
    kept: Sequence[str] = ()

    def places(self) -> Sequence[str]:
        """Where each row is, for people: the line that it begins at in a file of lines, else its number."""
        rows, file = range(1, len(self.data) + 1), expanded(self.name)
        with suppress(UserError, csv.Error):
            lines = _lines(file, self.encoding or UTF_8) if file.is_file() and not self.kept else []
            if len(lines) == len(rows):
                return [f"line {number}" for number in lines]
        return self.kept or [f"row {number}" for number in rows]

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Columns of each row, a batch at a time; an image as its file: `bytes` or `path`."""
        chosen = self.data.select_columns(list(columns))
        data = as_files(chosen)
        with one_line(self.name):
            for batch in data.iter(batch_size=ROWS if data.features == chosen.features else ROWS_OF_IMAGES):
                yield from ({name: batch[name][at] for name in columns} for at in range(len(batch[columns[0]])))


class Pieces(dict[str, Piece]):
    """The splits that there are, `train` first, or `test` alone; `files` has the sha256 of each file, or the commit."""

    def __init__(self, pieces: Mapping[str, Piece], files: Mapping[str, str]) -> None:
        super().__init__(pieces)
        self.files = dict(files)

    def changed(self, how: Callable[[str, Piece], Any]) -> Pieces:
        """These pieces with other rows: those that `how` gives for a name and its piece."""
        return Pieces({name: replace(piece, data=how(name, piece)) for name, piece in self.items()}, self.files)

    def check_columns(self, columns: Columns) -> None:
        """Raise a UserError where a piece has not a column that is named."""
        for piece in self.values():
            there = piece.data.column_names
            for field, column in ((field, name) for field, names in columns.items() for name in names):
                if column not in there:
                    has = abridged([f"{name!r:.40}" for name in there])
                    is_row = _format(Path(piece.name)) == "csv" and any(name in piece.data[name][:] for name in there)
                    hint = ": is its first line no header? Write one above, such as text,label" if is_row else ""
                    raise UserError(f"task.{field}: {piece.name} has no column '{column}' (it has {has}){hint}")


# ---------------------------------------------------------------- splits


def open_data(own: OwnData) -> Pieces:
    """Open the data; a UserError where it cannot be found, read or understood, or has not a split that is asked for."""
    files: dict[str, str] = {}
    main = _open(own, own.data, "data", files)
    found, by_name = {"train": _split_of(main, own.data, "train", own.train_split)}, set()
    for name, source in (("validation", own.validation_data), ("test", own.test_data)):
        wanted = getattr(own, f"{name}_split")
        if source is not None:
            found[name] = _split_of(_open(own, source, f"{name}_data", files), source, name, wanted)
        elif wanted is not None:
            found[name] = _split_of(main, own.data, name, wanted)
        elif len(main) > 1 and any(each in main for each in SPLITS[name]):
            found[name] = _split_of(main, own.data, name, None)
            by_name.add(name)
    for name, piece in sorted(found.items(), key=lambda one: one[0] not in by_name):
        if any(piece.data is other.data for key, other in found.items() if key != name):
            if name not in by_name:
                raise UserError(f"task.{name}_split: {piece.name} is another split already")
            del found[name]  # one that is found by its name gives way to the split that is asked for
    return Pieces({name: replace(piece, encoding=own.encoding) for name, piece in found.items()}, files)


def open_given(given: str, own: OwnData | None = None, name: str = "train", split: str | None = None) -> Pieces:
    """A file, a folder or a data set of the hub that a command is given, as the one piece of a name; an ArgumentError
    where it cannot be found, read or understood, or has no such split.

    Args:
        given: which.
        own: of a recipe: its encoding is taken, and what else it says of data where it names the same.
        name: `train` or `test`.
        split: of several splits, which; None is the recipe's, the one of the piece's name, or the only one.
    """
    own = own or OwnData(given)
    named = filter(None, (own.data, own.validation_data, own.test_data))
    if expanded(given) not in map(expanded, named):  # up to `./` and a slash at the end
        own = OwnData(given, encoding=own.encoding, decimal_comma=own.decimal_comma)
    files: dict[str, str] = {}
    try:
        found = _open(own, given, "data", files)
        recipes = getattr(own, f"{name}_split")
        piece = _split_of(found, given, name, split or (recipes if recipes in found else None))
    except UserError as error:
        said = re.sub(r"^task\.(\w+): ", lambda field: "`split`: " if "split" in field[1] else "", str(error))
        raise ArgumentError(said.replace("task.encoding", "`encoding`")) from error
    return Pieces({name: replace(piece, split_field=None, encoding=own.encoding)}, files)


def _split_of(source: Mapping[str, datasets.Dataset], given: str, name: str, wanted: str | None) -> Piece:
    """The split that is asked for, or the one that is called so, or the only one."""
    names = SPLITS[name] if wanted is None else (wanted,)
    chosen = next((each for each in names if each in source), None)
    if chosen is None and wanted is None and len(source) == 1:
        chosen = next(iter(source))
    if chosen is None:
        raise UserError(f"task.{name}_split: {given} has no split '{names[0]}' (it has {', '.join(source)})")
    title, field = (given, None) if len(source) == 1 else (f"{given}, {chosen}", f"task.{name}_split")
    if not len(source[chosen]):
        raise UserError(f"{title} has no rows")
    path = expanded(given)
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    return Piece(source[chosen], title, folder, None if name == "train" else field)


# ---------------------------------------------------------------- reading


@contextmanager
def one_line(what: object, field: str = "") -> Iterator[None]:
    """Whatever a library has against data becomes one line that begins with its name."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Length of header or names does not match")  # pandas would drop fields
            yield
    except UserError:
        raise
    except UnicodeError as error:
        hint = "task.encoding=cp1252 or another names the one that it has"
        raise UserError(f"{what} has text in another encoding ({error}): {hint}") from error
    except Exception as error:  # pandas, Arrow and `datasets` raise many kinds, some of them their own
        raise UserError(f"{field}{what} cannot be read: {reason(cause_of(error))}") from error


def _open(own: OwnData, given: str, field: str, files: dict[str, str]) -> Any:
    """The splits of a file, a folder or a data set of the hub; `files` gets its sha256 or its commit."""
    path = expanded(given)
    with one_line(given, f"task.{field}: "):
        if path.is_file():
            if _format(path) is None:
                raise UserError(f"task.{field}: {given}: '{path.suffix}' is not one of {', '.join(FORMATS)}")
            files[given] = file_digest(path)
            return {"train": _read([path], own)}
        if path.is_dir():
            files[given] = folder_digest(path)
            return _read_folder(path, own)
    if "/" not in given or is_path(given) or _format(path):
        raise UserError(f"task.{field}: '{given}' is no file, no folder and no data set of the hub (owner/name)")
    hub = HubData(given, own.config, own.revision)
    found, commit = hub.load_all()
    copy = hub.copy()
    files[given] = commit if copy is None else folder_digest(copy)
    return found


def _format(path: Path) -> str | None:
    """The format of a file by its name; None of one that has no rows."""
    name = path.stem if path.suffix.lower() in PACKED else path.name
    return FORMATS.get(Path(name).suffix.lower())


def _read(paths: Sequence[Path], own: OwnData) -> Any:
    """The rows of files of one format, one after the other."""
    with extra("train"):
        import datasets
        import pandas
    kind, named = _format(paths[0]), own.encoding or UTF_8
    if kind == "parquet":
        return datasets.Dataset.from_parquet([str(path.absolute()) for path in paths])
    if kind == "arrow":
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path.absolute())) for path in paths])
    if kind in ("csv", "excel"):
        # nothing is guessed: `007`, `NA` and `1e3` stay what they are
        plain: dict[str, Any] = {"dtype": str, "keep_default_na": False}
        tables = []
        for path in paths:
            with one_line(path):
                if kind == "excel":
                    tables += [one for one in pandas.read_excel(path, sheet_name=None, **plain).values() if len(one)]
                    continue
                try:
                    csv_file = {"sep": separator_of(path, named), "index_col": False, "encoding": named}
                    tables.append(pandas.read_csv(path, **csv_file, **plain))
                except pandas.errors.ParserError as error:  # which does not count the line breaks within texts
                    (_, header), *records = _records(path, named)
                    for line in (line for line, fields in records if len(fields) > len(header)):
                        raise UserError(f"{path}, line {line}: it has more fields than the header") from error
                    raise
        table = pandas.concat(tables, ignore_index=True)
        table = table.replace(r"^\s*([-+]?\d*),(\d+)\s*$", r"\1.\2", regex=True) if own.decimal_comma else table
        return datasets.Dataset.from_pandas(table, preserve_index=False)
    if kind == "text":
        texts = [line for path in paths for line in _content(path, named).rstrip("\n").split("\n")]
        return datasets.Dataset.from_dict({"text": texts})
    rows = [row for path in paths for row in _json_rows(path, named)]
    names = dict.fromkeys(name for row in rows for name in row)
    with one_line(paths[0]):  # each value stays what it is
        return datasets.Dataset.from_dict(
            {name: [row.get(name) for row in rows] for name in names}, on_mixed_types="use_json"
        )


def _content(path: Path, encoding: str, is_header: bool = False) -> str:
    """A text file, unpacked, or its first line."""
    import fsspec

    with one_line(path), fsspec.open(str(path.absolute()), "rt", encoding=encoding, compression="infer") as file:
        return str(file.readline() if is_header else file.read())


def separator_of(path: Path, encoding: str) -> str:
    """What is between the fields of a CSV file."""
    header = _content(path, encoding, is_header=True)
    by_semicolons = ";" in header and "," not in header  # as spreadsheets of many countries write it
    return "\t" if ".csv" not in path.name.lower() else ";" if by_semicolons else ","


def _records(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows of a CSV file, and the line at which each begins."""
    reader = csv.reader(io.StringIO(_content(path, encoding), ""), delimiter=separator_of(path, encoding))
    begins = 1
    for fields in reader:
        if len(fields) > 1 or any(map(str.strip, fields)):  # pandas skips what is blank
            yield begins, fields
        begins = reader.line_num + 1


def _lines(path: Path, encoding: str) -> list[int]:
    """The line at which each row of a file begins; none of a file whose rows are no lines."""
    kind = _format(path)
    if kind == "csv":
        return [line for line, _ in _records(path, encoding)][1:]
    text = _content(path, encoding) if kind in ("json", "text") else "["
    lines = enumerate(text.split("\n"), start=1)
    return [] if text.lstrip().startswith("[") else [line for line, part in lines if kind == "text" or part.strip()]


def _json_rows(path: Path, encoding: str) -> list[dict[str, Any]]:
    """The rows of a list of objects, or of lines of objects."""
    text, rows = _content(path, encoding), []
    is_list = text.lstrip().startswith("[")
    for line, part in enumerate([text] if is_list else text.split("\n"), start=1):
        try:
            found = parse_json(part) if part.strip() else []
        except ValueError as error:
            raise UserError(f"{path}{'' if is_list else f', line {line}'}: no JSON: {error}") from error
        rows += found if isinstance(found, list) else [found]
    if (bad := next((at for at, row in enumerate(rows) if not isinstance(row, dict)), None)) is not None:
        place = f"row {bad + 1}" if is_list else f"line {_lines(path, encoding)[bad]}"
        raise UserError(f'{path}, {place}: it is no object with named fields, such as {{"text": ...}}')
    return rows


def _read_folder(path: Path, own: OwnData) -> Any:
    """What `save_to_disk` wrote; a data set whose README.md has `configs`; tables of one format; images by class."""
    with extra("train"):
        import datasets
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved: Any = datasets.load_from_disk(str(path), keep_in_memory=False).with_format(None)
        saved = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        check_inside(path, [file["filename"] for split in saved.values() for file in split.cache_files])
        return saved
    card = path / "README.md"
    if card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8", "replace")):
        builder = datasets.load_dataset_builder(str(path), own.config)
        check_inside(path, [file for files in (builder.config.data_files or {}).values() for file in files])
        builder.download_and_prepare()
        return builder.as_dataset()
    every = files_of(path)
    images = [file for file in every if file.suffix.lower() in (*IMAGE_FILES, *UNREAD)]
    if images and any(file.stem == "metadata" for file in every):  # a table of images, as `datasets` calls it
        return datasets.load_dataset("imagefolder", data_dir=str(path))
    tables = {file: kind for file in every if (kind := _format(file)) and file.name != card.name}
    if len(images) > len(tables):
        return _images_by_class(path, images)
    formats = {kind for kind in tables.values() if kind != "text"} or set(tables.values())
    if len(formats) != 1:
        several = f"files of several formats ({', '.join(sorted(formats))}): name one" if formats else "no files"
        raise UserError(f"{path} has {several} of {', '.join(FORMATS)}, or images")
    by_split = _by_split([file for file, kind in tables.items() if kind in formats], path)
    return {name: _read(some, own) for name, some in by_split.items()}


def _images_by_class(folder: Path, images: Sequence[Path]) -> Mapping[str, datasets.Dataset]:
    """Paths in a folder of images, of which their own folder is the class; in those of splits, where there are any."""
    from datasets import Dataset

    depth, _ = Counter(len(file.parts) for file in images).most_common(1)[0]
    if other := next((file for file in images if len(file.parts) != depth), None):
        raise UserError(f"{other} is not in the folder of a class, as the others are: move it into one, or away")
    has_splits = depth > len(folder.parts) + 2
    by_split = _by_split(images, folder, of=lambda file: Path(file.parts[-3])) if has_splits else {"train": images}
    return {
        name: Dataset.from_list([{"image": str(one.relative_to(folder)), "label": one.parent.name} for one in some])
        for name, some in by_split.items()
    }


def _by_split(
    files: Sequence[Path], folder: Path, of: Callable[[Path], Path] = lambda file: file
) -> dict[str, Sequence[Path]]:
    """Files of a folder by the split that a word in their names, or else of a folder that they are in, stands for: all
    for training where none does; a UserError where only some tell one."""
    told: dict[Path, str | None] = {}
    for file in files:
        words = [set(re.split(r"[\W_\d]+", part.casefold())) for part in reversed(of(file.relative_to(folder)).parts)]
        told[file] = next((name for some in words for name, known in SPLITS.items() if some & set(known)), None)
    left = [file for file in files if told[file] is None]
    if left and len(left) < len(files):
        raise UserError(f"{folder}: the name of {left[0].relative_to(folder)} tells no split, as those of others do")
    return {name: some for name in SPLITS if (some := [file for file in files if (told[file] or "train") == name])}


# ---------------------------------------------------------------- what it was


def sha256_of(given: str) -> str | None:
    """The sha256 of a file or of a folder's files; None where there is none that can be read."""
    path = expanded(given)
    try:
        return file_digest(path) if path.is_file() else folder_digest(path) if path.is_dir() else None
    except OSError:
        return None


def folder_digest(folder: Path, files: Sequence[Path] | None = None) -> str:
    """sha256 over the names and contents of a folder's files, or of some of them; hidden ones, such as caches, are left
    out. A UserError for a link that leads out of the folder."""
    digest = hashlib.sha256()
    check_links(folder)
    for path in files_of(folder) if files is None else files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that are neither hidden nor a cache that `datasets` keeps beside what it saved."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (path.name.startswith("cache-") and (path.parent / "state.json").is_file())
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
