"""The kinds of tasks that a user's own data can be: which columns each reads, and what it makes of them."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...extras import extra
from .. import vision
from ..task import CATALOGUE, SplitSizes, Task, as_tuples
from . import columns as cells
from .chat import prepare_chats
from .choices import prepare_choices
from .source import Columns, OwnData, Piece, Pieces, one_line, open_data
from .split import BadRow, BadRows, Prepared, Row, Splits


@dataclass(frozen=True)
class OwnKind:
    """One kind.

    Args:
        name: `task.name` in a recipe, and the name of the recipe to start from.
        prepare: `prepare(pieces, columns, labels)` gives the data ready to be split; `labels` are the classes of a
            finished run, in their order, None where the training rows are to say them. It raises a UserError where a
            column is not there, a row cannot be used, or there is nothing to tell apart.
        columns: the fields that name columns, and the column that each is by default.
        facts: what the `Task` has.
        several: how many columns a field may name, where that is not one.
    """

    name: str
    prepare: Callable[..., Prepared]
    columns: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Any]
    several: Mapping[str, int] = field(default_factory=dict)

    def load(self, data: OwnData, columns: Columns, sizes: SplitSizes, split_seed: int, **form: str) -> Splits:
        """The splits; a UserError where the data cannot be read, or a row cannot be used and is not to be left out."""
        pieces, skipped = open_data(data), 0
        while True:
            try:
                splits = self.prepare(pieces, columns, None, **form).split(sizes, split_seed)
                splits.record |= {"skipped": skipped, "rows": splits.record["rows"] + skipped} if skipped else {}
                return splits
            except BadRows as error:
                if error.are_all:
                    hint = f"; {cells.IS_CLASSIFICATION}" if self.name == "regression" else ""
                    raise UserError(f"{error}{hint}") from error
                if not data.skip_bad_rows:
                    raise UserError(f"{error}; task.skip_bad_rows=true leaves such rows out") from error
                pieces, skipped = error.left_out(pieces), skipped + len(error.wrong)

    def task(self, data: OwnData, columns: Columns) -> Task:
        """The task that a recipe's data and columns make."""
        pair = {"text_columns": ("text", "text_b")} if len(columns.get("text", ())) == 2 else {}
        return Task(
            name=f"{self.name} of {data.title}",
            source=data.title,
            license="its owner's",
            load=functools.partial(self.load, data, columns),
            group="own",
            sizes=SplitSizes(),
            **{**self.facts, **pair},
        )


# ---------------------------------------------------------------- texts

Labels = Sequence[str] | None


def _texts(pieces: Pieces, columns: Columns, labels: cells.Values, feature: Any, **more: Any) -> Prepared:
    """Pieces with `text`, `text_b` for a second column, and `label`; the texts stay where they are."""
    own = dict(zip(("text", "text_b"), columns["text"], strict=False))

    def prepared(name: str, piece: Piece) -> Any:
        data = piece.data.select_columns(list(own.values())).rename_columns({old: new for new, old in own.items()})
        return data.add_column("label", labels[name], feature=feature)

    def key(row: Row) -> str:
        """Texts that differ in case, punctuation or spaces only are the same."""
        return "\n".join(cells.same_text(cells.text(row[new], old)) for new, old in own.items())

    return Prepared(pieces.changed(prepared), list(own), key, **more)


def _classes(
    pieces: Pieces, found: cells.Values, labels: Labels, known: list[str] | None
) -> tuple[Any, cells.Values, dict[str, Any]]:
    """The type of a class, the places of those of each row among them, and what else is known of them."""
    with extra("train"):
        from datasets import ClassLabel
    classes = cells.classes_of(pieces, found, labels, known)
    places = {name: place for place, name in enumerate(classes)}
    chosen = {name: [[places[one] for one in row] for row in some] for name, some in found.items()}
    return ClassLabel(names=list(classes)), chosen, {"strata": chosen.get("train"), "record": {"classes": classes}}


def _one_class(pieces: Pieces, label: str, labels: Labels) -> tuple[Any, cells.Values, dict[str, Any]]:
    found = cells.read(pieces, (label,), lambda value: (cells.class_name(value),))
    known = cells.declared(pieces["train"], label) if labels is None else None
    feature, chosen, more = _classes(pieces, found, labels, known)
    return feature, {name: [one for (one,) in some] for name, some in chosen.items()}, more


def prepare_classification(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, of one class each."""
    pieces.check_columns(columns)
    feature, found, more = _one_class(pieces, columns["label"][0], labels)
    return _texts(pieces, columns, found, feature, **more)


def prepare_regression(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, with a number each."""
    with extra("train"):
        from datasets import Value
    pieces.check_columns(columns)
    numbers = cells.read(pieces, columns["label"], cells.number)
    trained = numbers.get("train", [])
    if len(trained) > 1 and len(set(trained)) == 1:
        raise UserError(f"{pieces['train'].name} has one label only, {trained[0]:g}: there is nothing to tell apart")
    return _texts(pieces, columns, numbers, Value("float64"), least=2)


def prepare_multi_label(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, with any number of labels each."""
    with extra("train"):
        from datasets import List
    pieces.check_columns(columns)
    given, known = columns["label"], None
    convert = cells.label_set if len(given) == 1 else functools.partial(cells.switches, names=given)
    found = cells.read(pieces, given, convert)
    if labels is None:
        known = list(given) if len(given) > 1 else cells.declared(pieces["train"], given[0])
        if known is None and {one.casefold() for some in found["train"] for one in some} <= {"0", "1", "true", "false"}:
            raise UserError(
                f"task.label: '{given[0]}' has 0 and 1 in place of labels: multi-label takes lists of names, or one "
                "column of 0 and 1 for each label; one label a row is a matter of classification"
            )
    feature, chosen, more = _classes(pieces, found, labels, known)
    return _texts(pieces, columns, chosen, List(feature), **more)


# ---------------------------------------------------------------- images


def prepare_images(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Images of one class each."""
    with extra("vision"):
        from datasets import Dataset, Image
    pieces.check_columns(columns)
    (image,), (label,) = columns["image"], columns["label"]
    feature, places, more = _one_class(pieces, label, labels)

    def prepared(name: str, piece: Piece) -> Any:
        data = piece.data.select_columns([image])
        if getattr(data.features[image], "dtype", None) in ("string", "large_string"):
            data = Dataset.from_dict({image: [path_found(path, piece.folder) for path in data[image]]})
        with one_line(f"task.image: {piece.name}: column '{image}'"):
            data = data.rename_columns({image: "image"}).cast_column("image", Image())
        return vision.with_rows(data.add_column("label", places[name], feature=feature))

    def key(row: Row) -> str:
        return hashlib.sha256(image_file(row["image"], image)).hexdigest()

    return Prepared(pieces.changed(prepared), ["image"], key, digests="images", **more)


def path_found(path: Any, folder: Path | None) -> Any:
    """A relative path of a table in a folder as it is from here: beside the table."""
    return path if folder is None or not isinstance(path, str) or not path or "://" in path else str(folder / path)


def image_file(value: Any, column: str) -> bytes:
    """The bytes of an image, of which `value` has the `bytes` or the `path`, or is one of them; a BadRow where there is
    none, or it is no image, is cut off or too large, or has other numbers than pixels have."""
    with extra("vision"):
        from PIL import Image, UnidentifiedImageError
    if isinstance(value, str | bytes):
        value = {"path" if isinstance(value, str) else "bytes": value}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise BadRow(f"'{column}' is empty")
    try:
        data = value.get("bytes")
        data = Path(value["path"]).read_bytes() if data is None else data
        # to tell whether it is whole by its pixels would take as long as an epoch
        with Image.open(io.BytesIO(data)) as image:
            is_byte = not image.mode.startswith(("I", "F"))
            if is_byte and image.format == "PNG":
                image.verify()  # the sums of its parts
            elif not (is_byte and image.format == "JPEG" and data.endswith(b"\xff\xd9")):  # the end of an image
                vision.rgb(image)
        return bytes(data)
    except (OSError, SyntaxError, ValueError, UserError, Image.DecompressionBombError) as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise BadRow(f"{value.get('path') or 'the image'} is no image that can be read{why}") from error


# ---------------------------------------------------------------- all kinds

_PREPARE: dict[str, Callable[..., Prepared]] = {
    "classification": prepare_classification,
    "regression": prepare_regression,
    "multi-label": prepare_multi_label,
    "choices": prepare_choices,
    "images": prepare_images,
    "chat": prepare_chats,
}
OWN = {name: OwnKind(name, prepare, **as_tuples(CATALOGUE["own"][name])) for name, prepare in _PREPARE.items()}
"""The kinds, by the name that a recipe's `task.name` has."""
