"""A column of images in the user's own data, each one checked."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from .. import vision
from .files import FORMATS
from .source import Piece, Pieces
from .split import BadRow, bad_row

if TYPE_CHECKING:
    import datasets


def images_of(piece: Piece, column: str) -> datasets.Dataset:
    """A column of images alone; of a table of paths, with each as `path_found` gives it.

    Raises:
        UserError: one of no file; names its row.
    """
    with extra("vision"):
        from datasets import Dataset
    data = piece.data.select_columns([column])
    if piece.folder is None or getattr(data.features[column], "dtype", None) not in ("string", "large_string"):
        return data
    given, found = list(data[column]), []
    for number, path in enumerate(given, start=1):
        try:
            found.append(path_found(path, piece.folder))
        except BadRow as error:
            raise bad_row(piece, number, error) from error
    # columns that `datasets` puts in place of all others take no further ones
    return data if found == given else Dataset.from_dict({column: found}, split=data.split)


def path_found(path: Any, folder: Path | None) -> Any:
    """A relative path of a table in a folder as it is from here: beside the table, or else in the working directory.

    Raises:
        BadRow: it is in neither.
    """
    if folder is None or not isinstance(path, str) or not path.strip() or Path(path).is_absolute() or "://" in path:
        return path
    beside = folder / path
    if os.path.exists(beside):
        return str(beside) if folder != Path() else path
    if not os.path.exists(path) and folder.absolute() != Path.cwd():
        raise BadRow(f"{path} is no file: neither {beside} nor, in the working directory, {Path.cwd() / path}")
    return path


def image_file(value: Any, column: str) -> bytes:
    """The bytes of an image.

    Args:
        value: its `bytes` or `path`, or one of them alone.
        column: where it stands.

    Raises:
        BadRow: there is none, or it is no image, is cut off or too large, or has other numbers than pixels have.
    """
    with extra("vision"):
        from PIL import Image, UnidentifiedImageError
    if isinstance(value, str | bytes):
        value = {"path" if isinstance(value, str) else "bytes": value}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise BadRow(f"'{column}' is empty")
    try:
        if (data := value.get("bytes")) is None:
            with open(value["path"], "rb") as file:
                data = file.read()
        with Image.open(io.BytesIO(data)) as image:
            if not _is_whole(image, data):
                with Image.open(io.BytesIO(data)) as again:
                    vision.rgb(again)
            return bytes(data)
    except (OSError, SyntaxError, ValueError, UserError, Image.DecompressionBombError) as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise BadRow(f"{value.get('path') or 'the image'} is no image that can be read{why}") from error


def _is_whole(image: Any, data: bytes) -> bool:
    """Whether an image can be told to be whole without its pixels, which would take as long as an epoch."""
    if image.mode.startswith(("I", "F")):  # whose pixels may be other numbers
        return False
    if image.format == "JPEG":
        return data.endswith(b"\xff\xd9")  # the end of an image
    try:
        image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return bool(image.format == "PNG")  # which has sums of its parts


def check_folders(pieces: Pieces, image: str) -> None:
    """Raise a UserError where `datasets` has told no classes by the folders that images are in: there is one folder, or
    some images are at another depth.
    """
    first = next(iter(pieces.values()))
    if first.data.column_names != [image]:
        return
    by_folder: dict[Path | None, list[Path]] = {}
    for piece in pieces.values():
        found = (row[image] for row in piece.rows([image]))
        by_folder.setdefault(piece.folder, []).extend(
            Path(one["path"]) for one in found if isinstance(one, dict) and one.get("path") and not one.get("bytes")
        )
    for paths in by_folder.values():
        depths = Counter(len(path.parts) for path in paths)
        if len(depths) > 1:
            ((most, _),) = depths.most_common(1)
            other = next(path for path in paths if len(path.parts) != most)
            name = other.relative_to(Path.cwd()) if other.is_relative_to(Path.cwd()) else other
            raise UserError(f"{name} is not in the folder of a class, as the others are: move it into one, or away")
    if len(folders := {path.parent.name for path in by_folder[first.folder]}) == 1:
        raise UserError(
            f"{first.name} has images in one folder only, '{folders.pop()}', and each class needs its own: there is "
            f"nothing to tell apart; {_of_a_table(first)}"
        )


def _of_a_table(piece: Piece) -> str:
    """How labels that are in a table, and not in the names of folders, are read."""
    folder = piece.folder or Path("FOLDER")
    there = sorted(path for path in folder.glob("*") if path.suffix.lower() in FORMATS)
    table = there[0] if there else folder / "labels.csv"
    return (
        f"a table of paths and labels is named itself, task.data={table}, or is called "
        f"{folder / 'metadata.csv'} and has a column file_name"
    )
