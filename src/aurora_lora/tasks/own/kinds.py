"""The kinds of tasks that a user's own data can be: which columns each reads, and what it makes of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import UserError
from ...extras import extra
from ..packaged import normalise
from ..prompts import QUESTION_FORMS
from ..task import SplitSizes, Task
from ..vision import with_rows
from . import columns as cells
from .chat_splits import prepare_chats
from .image_column import check_folders, image_file, images_of
from .labels import class_name, classes_of_data, classes_of_run, is_switch, label_set, measured, switches, vector_length
from .options import options_of, right_option
from .prepared import Prepared
from .source import OwnData, Piece, Pieces, open_data
from .split import BadRow, Row, Splits

Columns = Mapping[str, tuple[str, ...]]
"""The user's columns, by the field of a recipe's `task` that names them."""
Labels = Sequence[str] | None


@dataclass(frozen=True)
class OwnKind:
    """One kind.

    Args:
        name: `task.name` in a recipe, and the name of the recipe to start from.
        kind: of the task.
        description: in one line.
        columns: the fields that name columns, and the column that each is by default.
        prepare: `prepare(pieces, columns, labels)` gives the data ready to be split; `labels` are the classes of a
            finished run, in their order, None where the training rows are to say them.
        metric: that is reported and selected by.
        also: further metrics.
        several: how many columns a field may name, where that is not one.
        more: what else the task has.
    """

    name: str
    kind: Any  # `Task.kind`
    description: str
    columns: Mapping[str, tuple[str, ...]]
    prepare: Callable[..., Prepared]
    metric: str
    also: tuple[str, ...] = ()
    several: Mapping[str, int] = field(default_factory=dict)
    text_columns: tuple[str, ...] = ("text",)
    more: Mapping[str, Any] = field(default_factory=dict)

    def load(self, data: OwnData, columns: Columns, sizes: SplitSizes, split_seed: int, **form: str) -> Splits:
        """The splits.

        Raises:
            UserError: the data cannot be read, or a row cannot be used.
        """
        return self.prepare(open_data(data), columns, None, **form).split(sizes, split_seed)

    def task(self, data: OwnData, columns: Columns) -> Task:
        """The task that a recipe's data and columns make."""
        pair = self.text_columns == ("text",) and len(columns["text"]) == 2
        return Task(
            name=f"{self.name} of {data.title}",
            description=self.description,
            kind=self.kind,
            labels=(),
            metric=self.metric,
            text_columns=("text", "text_b") if pair else self.text_columns,
            source=data.title,
            license="its owner's",
            load=functools.partial(self.load, data, columns),
            group="own",
            also=self.also,
            sizes=SplitSizes(None, None, None),
            **self.more,
        )


def _with_columns(pieces: Pieces, columns: Columns) -> Pieces:
    for piece in pieces.values():
        for where, names in columns.items():
            for name in names:
                piece.need(name, where)
    return pieces


def _texts(pieces: Pieces, columns: Columns, labels: cells.Values, feature: Any, **more: Any) -> Prepared:
    """Pieces with `text`, `text_b` for a second column, and `label`; the texts stay where they are."""
    own = dict(zip(("text", "text_b"), columns["text"], strict=False))

    def prepared(name: str, piece: Piece) -> Piece:
        data = piece.data.select_columns(list(own.values())).rename_columns({old: new for new, old in own.items()})
        return replace(piece, data=data.add_column("label", _array(labels[name]), feature=feature))

    def key(row: Row) -> str:
        """Texts that differ in case, punctuation or spaces only are the same."""
        return "\n".join(normalise(cells.text(row[new], old)) for new, old in own.items())

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


def _classification(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    with extra("train"):
        from datasets import ClassLabel
    _with_columns(pieces, columns)
    (label,) = columns["label"]
    classes, found = _classes(pieces, label, labels)
    feature = ClassLabel(names=list(classes))
    return _texts(pieces, columns, found, feature, strata=_one_each(found), record={"classes": classes})


def _regression(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    with extra("train"):
        from datasets import Value
    _with_columns(pieces, columns)
    numbers = cells.read(pieces, columns["label"], measured)
    trained = numbers.get("train", [])
    if len(trained) > 1 and len(set(trained)) == 1:
        raise UserError(f"{pieces['train'].name} has one label only, {trained[0]:g}: there is nothing to tell apart")
    return _texts(pieces, columns, numbers, Value("float64"), least=2)


def _multi_label(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    with extra("train"):
        from datasets import ClassLabel, List
    _with_columns(pieces, columns)
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


def _choices(pieces: Pieces, columns: Columns, labels: Labels, form: str = "cloze") -> Prepared:
    with extra("train"):
        from datasets import Dataset
    _with_columns(pieces, columns)
    (question,), (answer,), named = columns["question"], columns["answer"], columns["options"]

    def read(row: Row, counts: bool = True) -> tuple[str, list[str], int]:
        given = row[named[0]] if len(named) == 1 else [row[name] for name in named]
        found, labels, places, of_numbers = options_of(given)
        right = right_option(row[answer], found, labels, named, places, of_numbers, counts)
        return cells.text(row[question], question), found, right

    used = [question, answer, *named]
    names = {name for piece in pieces.values() for name in cells.declared(piece, answer) or ()}
    by_name = functools.partial(read, counts="0" in names)  # where 0 is none, nobody tells whether they begin at 1
    if (declared := _answers_by_name(pieces, answer, used, by_name)) is not None:
        pieces, read = declared, by_name

    def key(row: Row) -> str:
        asked, found, _ = read(row)
        return "\n".join((normalise(asked), *sorted(map(normalise, found))))

    def answers(piece: Piece) -> Iterator[Hashable]:
        for row in piece.rows(used):
            _, found, right = read(row)
            yield normalise(found[right])

    row_of = max(used, key=len) + "_row"  # a name that none of them has

    def prepared(piece: Piece) -> Piece:
        places = [f"{piece.name}, row {number}" for number in range(1, len(piece.data) + 1)]
        return replace(piece, data=piece.data.select_columns(list(dict.fromkeys(used))).add_column(row_of, places))

    def asked(split: Any) -> Any:
        found = [(*read(row), row[row_of]) for row in split]
        return Dataset.from_list(
            [
                dict(zip(("prompt", "choices"), QUESTION_FORMS[form](text, some), strict=True), label=right, row=row)
                for text, some, right, row in found
            ]
        )

    ready = Pieces({name: prepared(piece) for name, piece in pieces.items()}, pieces.files)
    return Prepared(ready, used, key, answers=answers, finish=asked)


def _answers_by_name(pieces: Pieces, answer: str, used: Sequence[str], read: Callable[[Row], Any]) -> Pieces | None:
    """Answers that the data declares as classes by their names, where these are what the options go by: where most
    rows can be read so. None elsewhere: there, and where each name is its own place, the place of a class counts
    options, as any whole number does.
    """

    def by_name(piece: Piece) -> Piece:
        names = cells.declared(piece, answer)
        if names is None or names == [str(place) for place in range(len(names))]:
            return piece
        answers = list(cells.values(piece, (answer,)))
        return replace(piece, data=piece.data.remove_columns(answer).add_column(answer, answers))

    def fits(row: Row) -> bool:
        try:
            read(row)
        except BadRow:
            return False
        return True

    named = {name: by_name(piece) for name, piece in pieces.items()}
    rows = [row for name, piece in named.items() if piece is not pieces[name] for row in piece.rows(used)]
    return Pieces(named, pieces.files) if 2 * sum(map(fits, rows)) > len(rows) else None


def _images(pieces: Pieces, columns: Columns, labels: Labels) -> Prepared:
    with extra("vision"):
        from datasets import ClassLabel, Image
    (image,), (label,) = columns["image"], columns["label"]
    check_folders(pieces, image)
    _with_columns(pieces, columns)
    classes, places = _classes(pieces, label, labels)
    feature = ClassLabel(names=list(classes))

    def prepared(name: str, piece: Piece) -> Piece:
        pixels = images_of(piece, image).rename_columns({image: "image"}).cast_column("image", Image())
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


_TEXT = {"text": ("text",), "label": ("label",)}
OWN: dict[str, OwnKind] = {
    kind.name: kind
    for kind in (
        OwnKind(
            "classification",
            "classification",
            "Which class is a text, or a pair of texts, of?",
            _TEXT,
            _classification,
            "accuracy",
            also=("macro_f1",),
            several={"text": 2},
        ),
        OwnKind(
            "regression",
            "regression",
            "Which number belongs to a text, or a pair of texts?",
            _TEXT,
            _regression,
            "pearson",
            also=("spearman",),
            several={"text": 2},
            more={"standardise": True},
        ),
        OwnKind(
            "multi-label",
            "multi-label",
            "Which of several labels does a text have?",
            _TEXT,
            _multi_label,
            "micro_f1",
            several={"text": 2, "label": 10_000},
        ),
        OwnKind(
            "choices",
            "multiple-choice",
            "Which of its options is the answer to a question?",
            {"question": ("question",), "options": ("options",), "answer": ("answer",)},
            _choices,
            "accuracy",
            several={"options": 26},
            text_columns=("prompt", "choices"),
            more={"max_length": 256, "prompt_forms": ("cloze", "instruction")},
        ),
        OwnKind(
            "images",
            "image-classification",
            "Which class is an image of?",
            {"image": ("image",), "label": ("label",)},
            _images,
            "accuracy",
            also=("macro_f1",),
            text_columns=(),
        ),
        OwnKind(
            "chat",
            "chat",
            "What is the assistant's answer in a conversation?",
            {},
            prepare_chats,
            "nll",
            also=("perplexity", "token_accuracy"),
            text_columns=(),
            more={"max_length": 1024},
        ),
    )
}
"""The kinds, by the name that a recipe's `task.name` has."""
