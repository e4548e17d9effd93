"""Opens data of the user's own: a file, a folder, or a data set of the hub; and finds its splits.

CSV files are read by pandas, every column as text; JSON by Python's own reader; everything else by `datasets`.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, UserError
from ...extras import extra
from ...files import expanded, file_digest, is_path, parse_json
from ..hub import HubData
from ..loading import NO_CODE, cause_of, reason
from ..vision import as_files

if TYPE_CHECKING:
    import datasets

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""The formats of files, by their suffix; before one of `PACKED`, too."""
PACKED = (".gz", ".bz2", ".xz", ".zip")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables that describe images, with a column `file_name`: as `datasets` calls them."""
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""The splits, and the names that they are looked for under."""
ROWS, ROWS_OF_IMAGES = 1000, 16
"""How many rows are in memory at a time when a table is read, and when its rows have images."""


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
        return Path(self.data).name if is_path(self.data) else self.data


@dataclass(frozen=True)
class Piece:
    """A split as it came.

    Args:
        data: its rows.
        name: for people.
        folder: that a table is in, or that was given: where paths in it are looked for first; None of the hub.
        split_field: of a recipe, which takes another split in its place; None where there is no other.
    """

    data: datasets.Dataset
    name: str
    folder: Path | None = None
    split_field: str | None = None

    def need(self, column: str, field: str) -> None:
        """Raise a UserError where there is no such column; `field` is where the recipe names it."""
        there = self.data.column_names
        if column not in there:
            folded = {one.strip().casefold(): one for one in there}
            near = difflib.get_close_matches(column.strip().casefold(), folded, n=1)
            hint = f"; did you mean '{folded[near[0]]}'?" if near else ""
            raise UserError(
                f"task.{field}: {self.name} has no column '{column}' (it has {', '.join(map(repr, there))}{hint})"
            )

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Columns of each row, a batch at a time; an image as its file: `bytes` or `path`.

        Raises:
            UserError: what should be text is none.
        """
        chosen = self.data.select_columns(list(columns))
        data = as_files(chosen)
        with one_line(self.name):
            for batch in data.iter(batch_size=ROWS if data.features == chosen.features else ROWS_OF_IMAGES):
                yield from ({name: batch[name][at] for name in columns} for at in range(len(batch[columns[0]])))


class Pieces(dict[str, Piece]):
    """The splits that there are, `train` first, or `test` alone.

    `files` has the sha256 of each file or folder, or the commit.
    """

    def __init__(self, pieces: Mapping[str, Piece], files: Mapping[str, str]) -> None:
        super().__init__(pieces)
        self.files = dict(files)

    def changed(self, how: Callable[[str, Piece], Any]) -> Pieces:
        """These pieces with other rows: those that `how` gives for a name and its piece."""
        return Pieces({name: replace(piece, data=how(name, piece)) for name, piece in self.items()}, self.files)


Columns = Mapping[str, tuple[str, ...]]
"""The user's columns, by the field of a recipe's `task` that names them."""


def check_columns(pieces: Pieces, columns: Columns) -> None:
    """Raise a UserError where a piece has not a column that is named."""
    for piece in pieces.values():
        for where, names in columns.items():
            for name in names:
                piece.need(name, where)


# ---------------------------------------------------------------- splits


def open_data(own: OwnData) -> Pieces:
    """Open the data.

    Raises:
        UserError: it cannot be found, read or understood; or a split that is asked for is not there.
    """
    given = [expanded(one) for one in (own.data, own.validation_data, own.test_data) if one is not None]
    for field, unused in (("config", Path.is_file), ("revision", Path.exists)):
        if getattr(own, field) is not None and all(map(unused, given)):
            raise UserError(f"task.{field}: '{getattr(own, field)}' goes with a data set of the hub, not with a file")
    files: dict[str, str] = {}
    main = _open(own, own.data, "data", files)
    found = {"train": _split_of(main, own.data, "train", own.train_split)}
    by_name = []
    for name, source in (("validation", own.validation_data), ("test", own.test_data)):
        wanted = getattr(own, f"{name}_split")
        if source is not None:
            found[name] = _split_of(_open(own, source, f"{name}_data", files), source, name, wanted)
        elif wanted is not None or (len(main) > 1 and any(each in main for each in SPLITS[name])):
            found[name] = _split_of(main, own.data, name, wanted)
            by_name += [name] if wanted is None else []
    for name in (*by_name, *found):
        if name in found and any(found[name].data is other.data for key, other in found.items() if key != name):
            if name not in by_name:
                raise UserError(f"task.{name}_split: {found[name].name} is another split already")
            del found[name]  # one that is found by its name gives way to the split that is asked for
    return Pieces(found, files)


def open_file(file: str, encoding: str | None = None, own: OwnData | None = None, split: str | None = None) -> Piece:
    """The rows of a file that no recipe names, or of a folder, or of a data set of the hub.

    Args:
        file: which; of several splits, `split`, or `train` if None.
        encoding: of text files; None is that of `own`.
        own: of the recipe of what is to answer the rows. Its configuration and revision are taken for what it names.
        split: the name of a split.

    Raises:
        ArgumentError: it cannot be found, read or understood, or has no such split.
    """
    own = own or OwnData(file)
    own = own if _is_named(own, file) else OwnData(file, encoding=own.encoding)
    try:
        found = _open(own if encoding is None else replace(own, encoding=encoding), file, "data", {})
        return replace(_split_of(found, file, "train", split), split_field=None)
    except UserError as error:
        said = str(error).removeprefix("task.data: ").replace("task.train_split:", "`split`:")
        raise ArgumentError(said.replace("task.encoding", "`encoding`")) from error


def open_test(own: OwnData, data: str) -> Pieces:
    """`test` alone: what `task.test_data` would be of data that the recipe does not name.

    Args:
        own: of the recipe. A configuration of the hub and a revision are taken for what it names itself alone, a
            configuration for other data sets of the hub too.
        data: a file, a folder, or a data set of the hub; of several splits, `test`, or the one of the recipe.

    Raises:
        ArgumentError: it cannot be found, read or understood, or has no such split.
    """
    files: dict[str, str] = {}
    is_named = _is_named(own, data)
    config = own.config if is_named or not expanded(data).exists() else None
    try:
        found = _open(replace(own, config=config, revision=own.revision if is_named else None), data, "data", files)
        piece = _split_of(found, data, "test", own.test_split if own.test_split in found else None)
    except UserError as error:
        said = re.sub(r"^task\.(data|test_split):", "`data`:", str(error))
        raise ArgumentError(said.replace("task.encoding", "`encoding`")) from error
    return Pieces({"test": replace(piece, split_field=None)}, files)


def _is_named(own: OwnData, data: str) -> bool:
    """Whether a recipe names the same file, folder or data set, up to `./` and a slash at the end."""
    named = (own.data, own.validation_data, own.test_data)
    return any(one is not None and expanded(one) == expanded(data) for one in named)


def _split_of(source: Mapping[str, datasets.Dataset], given: str, name: str, wanted: str | None) -> Piece:
    """The split that a recipe asks for, or the one that is called so, or the only one."""
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
            files[given] = file_digest(path)
            if _format(path) is None:
                raise UserError(f"task.{field}: {given}: '{path.suffix}' is not one of {', '.join(FORMATS)}")
            return {"train": _read([path], own.encoding)}
        if path.is_dir():
            files[given] = folder_digest(path)
            return _read_folder(path, own)
    if "/" not in given or is_path(given) or _format(path):
        beside = {one.name: one for one in (path.parent.iterdir() if path.parent.is_dir() else ())}
        near = [name for name, one in beside.items() if one.stem == path.name]  # the suffix was left out
        near += difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise UserError(f"task.{field}: '{given}' is no file, no folder and no data set of the hub (owner/name){hint}")
    hub = HubData(given, own.config, own.revision)
    found, commit = hub.load_all()
    copy = hub.copy()
    files[given] = commit if copy is None else folder_digest(copy)
    return found


def _format(path: Path) -> str | None:
    """The format of a file by its name; None of one that has no rows."""
    name = path.stem if path.suffix.lower() in PACKED else path.name
    return FORMATS.get(Path(name).suffix.lower())


def _read(paths: Sequence[Path], encoding: str | None) -> Any:
    """The rows of files of one format, one after the other."""
    with extra("train"):
        import datasets
    kind, named = _format(paths[0]), encoding or "utf-8-sig"  # which leaves out the mark that some files begin with
    try:
        codecs.lookup(named)
    except LookupError as error:
        raise UserError(f"task.encoding: '{encoding}' is no encoding, such as utf-8, cp1252 or utf-16") from error
    if kind == "csv":
        import pandas

        tables = []
        for path in paths:
            with one_line(path):
                tables.append(
                    pandas.read_csv(
                        path,
                        sep=_separator(path, named),
                        dtype=str,  # nothing is guessed: `007`, `NA` and `1e3` stay what they are
                        keep_default_na=False,
                        index_col=False,
                        encoding=named,
                    )
                )
        return datasets.Dataset.from_pandas(pandas.concat(tables, ignore_index=True), preserve_index=False)
    if kind == "json":
        return from_rows([row for path in paths for row in _json_rows(path, named)], paths[0])
    if kind == "text":
        lines = [line for path in paths for line in _content(path, named).rstrip("\n").split("\n")]
        return datasets.Dataset.from_dict({"text": lines})
    files = [str(path.absolute()) for path in paths]
    if kind == "arrow":
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    return datasets.Dataset.from_parquet(files)


def _separator(path: Path, encoding: str) -> str:
    """A tab by the suffix; a semicolon where the header has no comma, as spreadsheets of many countries write it."""
    if ".csv" not in path.name.lower():
        return "\t"
    header = _content(path, encoding, is_header=True)
    return ";" if ";" in header and "," not in header else ","


def _content(path: Path, encoding: str, is_header: bool = False) -> str:
    """A text file, unpacked, or its first line."""
    import fsspec

    with (
        one_line(path),
        fsspec.open(str(path.absolute()), "rt", encoding=encoding, compression="infer") as file,
    ):
        return str(file.readline() if is_header else file.read())


def _json_rows(path: Path, encoding: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a list of objects, or of lines of objects."""
    text = _content(path, encoding)
    is_list = text.lstrip().startswith("[")
    lines = [(0, text)] if is_list else [(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    number = 0
    for at, line in lines:
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}{f', line {at}' if at else ''}: no JSON: {error}") from error
        for row in found if is_list else [found]:
            number += 1
            if not isinstance(row, dict):
                raise UserError(f'{path}, row {number}: it is no object with named fields, such as {{"text": ...}}')
            yield row


def from_rows(rows: Iterable[Mapping[str, Any]], where: object) -> datasets.Dataset:
    """Rows as a data set, in memory: each has the columns of all of them, and objects stay as they are.

    Raises:
        UserError: the values of a column are of types that do not go together.
    """
    with extra("train"):
        import pyarrow
        from datasets import Dataset, Features
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    types: dict[str, Any] = {}
    for name, values in columns.items():
        types[name] = object_type(values)
        if types[name] is None:
            kinds = {type(value) for value in values} - {type(None)}
            if len(kinds) > 1 and str in kinds and kinds <= {str, int, float, bool}:  # "1" and 1 are the same label
                values = [one if one is None or isinstance(one, str) else json.dumps(one) for one in values]
                columns[name] = values
            try:
                kind = pyarrow.array(values).type
            except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                raise UserError(f"{where}: the values of '{name}' are not of one type: {reason(error)}") from error
            types[name] = Features.from_arrow_schema(pyarrow.schema([(name, kind)]))[name]
    return Dataset.from_dict(columns, features=Features(types))


def object_type(values: Sequence[Any]) -> Any:
    """The type of a column of objects, or of lists of them, which keeps each as it is; None of other values."""
    from datasets import Json, List

    given = [value for value in values if value is not None]
    lists = [value for value in given if isinstance(value, list)]
    has_objects = any(isinstance(one, Mapping) for some in lists for one in some)
    if any(isinstance(value, Mapping) for value in given) or (has_objects and len(lists) < len(given)):
        return Json()
    return List(Json()) if has_objects else None


def _read_folder(path: Path, own: OwnData) -> Mapping[str, datasets.Dataset]:
    """What `save_to_disk` wrote; a data set whose README.md has `configs`; tables of one format; images by class."""
    with extra("train"):
        import datasets
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path)).with_format(None)
        return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    card = path / "README.md"
    if card.is_file() and re.search(r"(?m)^configs:", card.read_text("utf-8", "replace")):
        found: Mapping[str, datasets.Dataset] = datasets.load_dataset(str(path), own.config, **NO_CODE)
        return found
    if own.config is not None:
        raise UserError(f"task.config: '{own.config}': {path} has no README.md with `configs`")
    every = files_of(path)
    images = [file for file in every if file.suffix.lower() in _image_suffixes()]
    tables = {file: kind for file in every if (kind := _format(file)) and file.name != card.name}
    described = {file: kind for file, kind in tables.items() if file.name in METADATA}
    if len(images) > len(tables) and not described:
        return _images_by_class(path, images)
    tables = described or tables
    formats = {kind for kind in tables.values() if kind != "text"} or set(tables.values())
    if len(formats) != 1:
        several = f"files of several formats ({', '.join(sorted(formats))}): name one" if formats else "no files"
        raise UserError(f"{path} has {several} of {', '.join(FORMATS)}, or images")
    by_split: dict[str, list[Path]] = {}
    for file in (one for one, kind in tables.items() if kind in formats):
        by_split.setdefault(_split_by_name(file.relative_to(path)), []).append(file)
    left = by_split.pop("", [])
    if by_split and left:
        raise UserError(f"{path}: the name of {left[0].relative_to(path)} tells no split, as those of other files do")
    found = {name: _read(by_split[name], own.encoding) for name in SPLITS if name in by_split}
    found = found or {"train": _read(left, own.encoding)}
    if described:  # paths beside the table
        for name, data in found.items():
            beside = [str(by_split.get(name, left)[0].parent / file) for file in data["file_name"]]
            found[name] = data.remove_columns("file_name").add_column("image", beside)
    return found


@functools.cache
def _image_suffixes() -> set[str]:
    """Suffixes of images: those that Pillow reads here, and others, which are refused by name."""
    with extra("vision"):
        from PIL import Image
    return {*Image.registered_extensions(), *(".avif", ".dng", ".heic", ".heif", ".jxl", ".svg")} - {".pdf"}


def _images_by_class(folder: Path, images: Sequence[Path]) -> Mapping[str, datasets.Dataset]:
    """Paths of images, of which the folder is the class; in folders that are called like splits, where there are any.

    Raises:
        UserError: an image is not in the folder of a class as the others are.
    """
    from datasets import Dataset

    parts = {file: file.relative_to(folder).parts for file in images}
    depth, _ = Counter(map(len, parts.values())).most_common(1)[0]
    if other := next((file for file in images if len(parts[file]) != depth), None):
        raise UserError(f"{other} is not in the folder of a class, as the others are: move it into one, or away")
    tops = {file: _split_by_name(Path(names[-3])) if depth > 2 else "" for file, names in parts.items()}
    if any(tops.values()) and (other := next((file for file in images if not tops[file]), None)):
        raise UserError(f"{folder}: the folder of {other} tells no split, as those of other images do")
    by_split = {name: [file for file in images if tops[file] == name] for name in SPLITS}
    return {
        name: Dataset.from_dict({"image": list(map(str, some)), "label": [file.parent.name for file in some]})
        for name, some in (by_split if any(tops.values()) else {"train": list(images)}).items()
        if some
    }


def _split_by_name(file: Path) -> str:
    """The split that a word in the name of a file, or else of a folder that it is in, stands for; empty if none."""
    for part in reversed(file.parts):
        words = re.split(r"[\W_\d]+", part.casefold())
        for name, known in SPLITS.items():
            if not set(words).isdisjoint(known):
                return name
    return ""


# ---------------------------------------------------------------- what it was


def sha256_of(given: str) -> str | None:
    """The sha256 of a file or of a folder's files; None where there is none that can be read."""
    path = expanded(given)
    try:
        return file_digest(path) if path.is_file() else folder_digest(path) if path.is_dir() else None
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
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (path.name.startswith("cache-") and (path.parent / "state.json").is_file())
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
