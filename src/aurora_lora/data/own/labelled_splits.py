"""Splits of texts and images with labels: classes, numbers, or any number of labels each.

Each `prepare_` is the `prepare` of an `OwnKind`, which says what it is given.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import UserError
from ...extras import extra
from ..loading import reason
from ..vision import with_rows
from . import columns as cells
from .image_column import check_folders, image_file, images_of
from .labels import class_name, classes_of_data, classes_of_run, is_switch, label_set, measured, switches, vector_length
from .prepared import Prepared
from .source import Columns, Piece, Pieces, check_columns
from .split import Row

Labels = Sequence[str] | None


def _texts(pieces: Pieces, columns: Columns, labels: cells.Values, feature: Any, **more: Any) -> Prepared:
    """Pieces with `text`, `text_b` for a second column, and `label`; the texts stay where they are."""
    own = dict(zip(("text", "text_b"), columns["text"], strict=False))

    def prepared(name: str, piece: Piece) -> Piece:
        data = piece.data.select_columns(list(own.values())).rename_columns({old: new for new, old in own.items()})
        return replace(piece, data=data.add_column("label", _array(labels[name]), feature=feature))

    def key(row: Row) -> str:
        """Texts that differ in case, punctuation or spaces only are the same."""
        return "\n".join(cells.same_text(cells.text(row[new], old)) for new, old in own.items())

    ready = Pieces({name: prepared(name, piece) for name, piece in pieces.items()}, pieces.files)
    return Prepared(ready, list(own), key, answers=_labels, **more)


def _labels(piece: Piece) -> Iterator[Hashable]:
    """The label of each row; several, whatever their order."""
    for row in piece.rows(["label"]):
        yield frozenset(row["label"]) if isinstance(row["label"], list) else row["label"]


def _array(labels: list[Any]) -> Any:
    """What `datasets` hashes in no time; lists of labels stay lists."""
    return labels if labels and isinstance(labels[0], list) else np.asarray(labels)


def _classes(pieces: Pieces, label: str, labels: Labels) -> tuple[dict[str, int], cells.Values]:
    """The classes, in label order, with the rows of each, and the place in them of each row's."""
    found = cells.read(pieces, (label,), lambda value: (class_name(value),))
    if labels is None:
        classes = classes_of_data(pieces, found, cells.declared(pieces["train"], label))
    else:
        classes = classes_of_run(pieces, found, labels)
    places = {name: place for place, name in enumerate(classes)}
    return classes, {name: [places[one] for (one,) in some] for name, some in found.items()}


def _one_each(labels: cells.Values) -> list[tuple[Any]] | None:
    """The classes of each row of training, where each has one; None where there is no training."""
    return [(one,) for one in labels["train"]] if "train" in labels else None


def prepare_classification(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, of one class each.

    Raises:
        UserError: a column is not there, a row cannot be used, or there is nothing to tell apart.
    """
    with extra("train"):
        from datasets import ClassLabel
    check_columns(pieces, columns)
    (label,) = columns["label"]
    classes, found = _classes(pieces, label, labels)
    feature = ClassLabel(names=list(classes))
    return _texts(pieces, columns, found, feature, strata=_one_each(found), record={"classes": classes})


def prepare_regression(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, with a number each.

    Raises:
        UserError: a column is not there, a row cannot be used, or there is nothing to tell apart.
    """
    with extra("train"):
        from datasets import Value
    check_columns(pieces, columns)
    numbers = cells.read(pieces, columns["label"], measured)
    trained = numbers.get("train", [])
    if len(trained) > 1 and len(set(trained)) == 1:
        raise UserError(f"{pieces['train'].name} has one label only, {trained[0]:g}: there is nothing to tell apart")
    return _texts(pieces, columns, numbers, Value("float64"), least=2)


def prepare_multi_label(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Texts, or pairs of texts, with any number of labels each.

    Raises:
        UserError: a column is not there, a row cannot be used, or there is nothing to tell apart.
    """
    with extra("train"):
        from datasets import ClassLabel, List
    check_columns(pieces, columns)
    given = columns["label"]
    if labels is None and len(given) == 1:
        _check_no_switches(pieces["train"], given[0])
    convert = label_set if len(given) == 1 else functools.partial(switches, names=given)
    found = cells.read(pieces, given, convert)
    if labels is None:
        known = list(given) if len(given) > 1 else cells.declared(pieces["train"], given[0])
        classes = classes_of_data(pieces, found, known)
    else:
        classes = classes_of_run(pieces, found, labels)
    places = {name: place for place, name in enumerate(classes)}
    chosen = {name: [[places[one] for one in row] for row in some] for name, some in found.items()}
    feature = List(ClassLabel(names=list(classes)))
    return _texts(pieces, columns, chosen, feature, strata=chosen.get("train"), record={"classes": classes})


def _check_no_switches(piece: Piece, label: str) -> None:
    """Raise a UserError where a column of labels has 0 and 1 in their place."""
    if all(map(is_switch, cells.values(piece, (label,)))):
        raise UserError(
            f"task.label: '{label}' has 0 or 1 in each row: one label is a matter of classification; multi-label "
            "takes several such columns, or one with lists of labels"
        )
    if cells.declared(piece, label) is None and (length := vector_length(piece, label)):
        raise UserError(
            f"task.label: '{label}' has a list of {length} times 0 or 1 in each row, which looks like a vector and "
            "names no label: multi-label takes lists of names, or one column of 0 and 1 for each label"
        )


def prepare_images(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    """Images of one class each.

    Raises:
        UserError: a column is not there, a row cannot be used, or there is nothing to tell apart.
    """
    with extra("vision"):
        from datasets import ClassLabel, Image
    (image,), (label,) = columns["image"], columns["label"]
    check_folders(pieces, image)
    check_columns(pieces, columns)
    classes, places = _classes(pieces, label, labels)
    feature = ClassLabel(names=list(classes))

    def prepared(name: str, piece: Piece) -> Piece:
        try:
            pixels = images_of(piece, image).rename_columns({image: "image"}).cast_column("image", Image())
        except UserError:
            raise
        except Exception as error:  # of Arrow and of `datasets`
            raise UserError(f"task.image: {piece.name}: '{image}' is no column of images: {reason(error)}") from error
        return replace(piece, data=with_rows(pixels.add_column("label", _array(places[name]), feature=feature)))

    def key(row: Row) -> str:
        return hashlib.sha256(image_file(row["image"], image)).hexdigest()

    ready = Pieces({name: prepared(name, piece) for name, piece in pieces.items()}, pieces.files)
    return Prepared(
        ready,
        ["image"],
        key,
        strata=_one_each(places),
        answers=_labels,
        digests="images",
        record={"classes": classes},
    )
