"""Opens data of the user's own, whatever it is: a file, a folder, a data set of the hub; and finds its splits."""

from __future__ import annotations

import difflib
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, UserError
from ...files import expanded, file_digest, is_path
from ..hub import HubData
from ..vision import as_files
from .files import FORMATS, folder_digest, read_file
from .folder import read_folder

if TYPE_CHECKING:
    import datasets

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
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
            near = difflib.get_close_matches(column, there, n=1) or [
                one for one in there if one.casefold() == column.casefold()
            ]
            if len(parts := [part.strip() for part in column.split(",")]) > 1 and set(parts) <= set(there):
                near = [f"task.{field}=[{', '.join(parts)}]"]
            hint = f"; did you mean '{near[0]}'?" if near else ""
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
        # images may be in the table itself, of megabytes each
        size = ROWS_OF_IMAGES if data.features != chosen.features else ROWS
        try:
            for batch in data.iter(batch_size=size):
                yield from ({name: batch[name][at] for name in columns} for at in range(len(batch[columns[0]])))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name} has text that is no UTF-8: {error}") from error


class Pieces(dict[str, Piece]):
    """The splits that there are, `train` first, or `test` alone.

    `files` has the sha256 of each file or folder, or the commit.
    """

    def __init__(self, pieces: Mapping[str, Piece], files: Mapping[str, str]) -> None:
        super().__init__(pieces)
        self.files = dict(files)


Columns = Mapping[str, tuple[str, ...]]
"""The user's columns, by the field of a recipe's `task` that names them."""


def check_columns(pieces: Pieces, columns: Columns) -> None:
    """Raise a UserError where a piece has not a column that is named."""
    for piece in pieces.values():
        for where, names in columns.items():
            for name in names:
                piece.need(name, where)


def open_data(own: OwnData) -> Pieces:
    """Open the data.

    Raises:
        UserError: it cannot be found, read or understood; or a split that is asked for is not there.
    """
    files: dict[str, str] = {}
    _check_used(own)
    main = _open(own, own.data, "data", files)
    found = {"train": _split_of(main, own.data, "train", own.train_split)}
    by_name = []
    for name, given in (("validation", own.validation_data), ("test", own.test_data)):
        wanted = getattr(own, f"{name}_split")
        if given is not None:
            source = _open(own, given, f"{name}_data", files)
            found[name] = _split_of(source, given, name, wanted)
        elif wanted is not None:
            found[name] = _split_of(main, own.data, name, wanted)
        elif any(each in main and len(main) > 1 for each in SPLITS[name]):
            found[name] = _split_of(main, own.data, name, None)
            by_name.append(name)
    for name in by_name:  # which gives way to the split that is asked for
        if any(found[name].data is other.data for key, other in found.items() if key != name):
            del found[name]
    for name, piece in found.items():
        if not len(piece.data):
            raise UserError(f"{piece.name} has no rows")
        if any(piece.data is other.data for key, other in found.items() if key != name):
            raise UserError(f"task.{name}_split: {piece.name} is another split already")
    return Pieces(found, files)


def _check_used(own: OwnData) -> None:
    """Raise a UserError for a field that nothing of what is opened has a use for."""
    given = [expanded(one) for one in (own.data, own.validation_data, own.test_data) if one is not None]
    for field, what, unused in (("config", "a folder or ", Path.is_file), ("revision", "", Path.exists)):
        value = getattr(own, field)
        if value is not None and all(map(unused, given)):
            raise UserError(f"task.{field}: '{value}' goes with {what}a data set of the hub, and {own.data} is here")


def open_file(file: str, encoding: str | None = None, own: OwnData | None = None, split: str | None = None) -> Piece:
    """The rows of a file that no recipe names, or of a folder, or of a data set of the hub.

    Args:
        file: which; of several splits, `split`, or `train` if None.
        encoding: of text files; None is that of `own`.
        own: of the recipe of what is to answer the rows. Its configuration and revision are taken for what it names.
        split: the name of a split.

    Raises:
        ArgumentError: as the UserError of `open_data`, of the arguments `file`, `encoding` and `split`.
    """
    own = own or OwnData(file)
    if not _is_named(own, file):
        own = OwnData(file, encoding=own.encoding)
    own = own if encoding is None else replace(own, encoding=encoding)
    return _open_one(own, file, "train", split, {}, {"task.data: ": "", "task.train_split: ": "`split`: "})


def open_test(own: OwnData, data: str) -> Pieces:
    """`test` alone: what `task.test_data` would be of data that the recipe does not name.

    Args:
        own: of the recipe. A configuration of the hub and a revision are taken for what it names itself alone, a
            configuration for other data sets of the hub too.
        data: a file, a folder, or a data set of the hub; of several splits, `test`, or the one of the recipe.

    Raises:
        ArgumentError: as the UserError of `open_data`, of the arguments `data` and `encoding`.
    """
    files: dict[str, str] = {}
    said = {"task.data: ": "`data`: ", "task.test_split: ": "`data`: "}
    return Pieces({"test": _open_one(own, data, "test", own.test_split, files, said, or_any=True)}, files)


def _open_one(
    own: OwnData,
    data: str,
    name: str,
    wanted: str | None,
    files: dict[str, str],
    said: Mapping[str, str],
    or_any: bool = False,
) -> Piece:
    """One split of data that the recipe need not name; see `open_test`.

    Args:
        own: of the recipe.
        data: where it is.
        name: of the split, as a recipe has it.
        wanted: what the data calls it.
        files: see `Pieces`; what is opened is added.
        said: how the errors that are about an argument begin instead.
        or_any: where there is no such split as `wanted`, the one that is called by `name` does.
    """
    is_named = _is_named(own, data)
    config = own.config if is_named or not expanded(data).exists() else None
    try:
        source = _open(replace(own, config=config, revision=own.revision if is_named else None), data, "data", files)
        piece = _split_of(source, data, name, None if or_any and wanted not in source else wanted)
        if not len(piece.data):
            raise UserError(f"{piece.name} has no rows")
    except UserError as error:
        text = str(error).replace("task.encoding", "`encoding`")
        start = next((start for start in said if text.startswith(start)), "")
        raise ArgumentError(said.get(start, "") + text.removeprefix(start)) from error
    return replace(piece, split_field=None)


def _is_named(own: OwnData, data: str) -> bool:
    """Whether a recipe names the same file, folder or data set, up to `./` and a slash at the end."""
    named = (own.data, own.validation_data, own.test_data)
    return any(one is not None and expanded(one) == expanded(data) for one in named)


def _split_of(source: datasets.DatasetDict, given: str, name: str, wanted: str | None) -> Piece:
    """The split that a recipe asks for, or the one that is called so, or the only one."""
    names = SPLITS[name] if wanted is None else (wanted,)
    chosen = next((each for each in names if each in source), None)
    if chosen is None and wanted is None and len(source) == 1:
        chosen = next(iter(source))
    if chosen is None:
        raise UserError(f"task.{name}_split: {given} has no split '{names[0]}' (it has {', '.join(source)})")
    path = expanded(given)
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    if len(source) == 1:
        return Piece(source[chosen], given, folder)
    return Piece(source[chosen], f"{given}, {chosen}", folder, None if name == "train" else f"task.{name}_split")


def _open(own: OwnData, given: str, field: str, files: dict[str, str]) -> datasets.DatasetDict:
    path = expanded(given)
    try:
        if path.is_file():
            files[given] = file_digest(path)
            return read_file(path, own.encoding, field)
        if path.is_dir():
            files[given] = folder_digest(path)
            return read_folder(path, own.config, own.encoding)
    except OSError as error:
        raise UserError(f"task.{field}: {given}: {error.strerror or error}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"task.{field}: {given}: a packed file is cut off or damaged: {error}") from error
    if path.suffix.lower() in FORMATS or "/" not in given or is_path(given):
        beside = _names_beside(path)
        near = [name for name in beside if Path(name).stem == path.name]  # the suffix was left out
        near += difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise UserError(f"task.{field}: '{given}' is no file, no folder and no data set of the hub (owner/name){hint}")
    hub = HubData(given, own.config, own.revision)
    found, commit = hub.load_all()
    copy = hub.copy()
    files[given] = commit if copy is None else folder_digest(copy)
    return found


def _names_beside(path: Path) -> list[str]:
    try:
        return [each.name for each in path.parent.iterdir()]
    except OSError:
        return []
