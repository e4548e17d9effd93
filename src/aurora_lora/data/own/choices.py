"""Questions with options in the user's own data, whichever way their answers are told, ready to be split."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...extras import extra
from ..prompts import QUESTION_FORMS
from . import columns as cells
from .source import Columns, Piece, Pieces, check_columns
from .split import BadRow, NoLabel, Prepared, Row

WAYS = {
    "label": "what the data call it",
    "column": "the name of its column",
    "text": "its text",
    "letter": "its letter",
    "number": "its number, from 0",
}
"""The ways in which answers may name an option, in the order in which they are tried, and what each is for people."""


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Args:
        texts: those that are not blank.
        labels: what the data call them.
        places: of the options, blank ones counted.
        are_numbers: whether there are numbers among them, not texts alone.
    """

    texts: list[str]
    labels: list[str]
    places: list[int]
    are_numbers: bool

    def names(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """What each option is called, by each of `WAYS`; `columns` are those that they come from, blank ones too."""
        return {
            "label": self.labels,
            "column": [columns[place] for place in self.places] if len(columns) > max(self.places) else [],
            "text": self.texts,
            "letter": [chr(ord("A") + place) for place in self.places],
            "number": [str(place) for place in self.places],
        }


def options_of(value: Any) -> Options:
    """The options of a question.

    Args:
        value: a list of texts, also as JSON in a text, or `{"text": [...], "label": [...]}`, as on the hub.

    Raises:
        BadRow: fewer than two, one that is no text, or two that are the same.
    """
    labels: list[str] = []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value, labels = value["text"], [str(one) for one in value.get("label") or ()]
    if isinstance(value, str):
        value = cells.json_list(value)
    if not isinstance(value, list):
        raise BadRow("the options are no list: name several columns, or a column with a list")
    places = [place for place, one in enumerate(value) if one not in (None, "")]
    found = [cells.text(_written(value[place]), "options").strip() for place in places]
    if len(found) < 2:
        raise BadRow(f"there are {len(found)} options: a question needs two")
    if twice := next((one for one, count in Counter(found).items() if count > 1), None):
        raise BadRow(f"two of the options are {twice!r:.40}: each must be another")
    are_numbers = any(isinstance(value[place], int | float) for place in places)
    return Options(found, [labels[place] for place in places if place < len(labels)], places, are_numbers)


def way_of(answers: Iterable[tuple[Any, Options]], columns: Sequence[str]) -> tuple[str, int]:
    """The way in which a column of answers names options, and how many rows it fits: the first of `WAYS` that fits
    every row, or else the one that fits most.

    A whole number that is no text counts options before it is the text of one, unless the options are numbers.

    Args:
        answers: as they stand in the data, each with its options.
        columns: that the options come from.
    """
    fits, are_counted = Counter[str](), True
    for value, options in answers:
        fits.update(way for way, names in options.names(columns).items() if _word(value) in names)
        are_counted &= not options.are_numbers and (value is None or isinstance(value, int | float))
    ways = list(WAYS)
    if are_counted:
        ways.insert(ways.index("text"), ways.pop())
    found = max(ways, key=lambda way: fits[way])  # the first of equal ones
    return found, fits[found]


def right_option(value: Any, options: Options, columns: Sequence[str], way: str) -> int:
    """Which option is right.

    Args:
        value: the answer as it stands in the data.
        options: one of which it is.
        columns: that these come from.
        way: of `WAYS`, in which it names one.

    Raises:
        BadRow: none of them, or there is none.
    """
    word, names = _word(value), options.names(columns)
    if word in names[way]:
        return names[way].index(word)
    if not word:
        raise NoLabel("it has no answer")
    if other := next((WAYS[one] for one in WAYS if word in names[one]), None):
        raise BadRow(
            f"the answer {word!r:.40} names an option by {other}, and those of other rows by {WAYS[way]}: all must do "
            "it in one way"
        )
    letters = names["letter"]
    raise BadRow(
        f"the answer {word!r:.40} is none of the options: it must be one of them, {letters[0]} to {letters[-1]}, or 0 "
        f"to {options.places[-1]}"
    )


def _word(value: Any) -> str:
    return "" if value is None else str(_written(value)).strip()


def _written(value: Any) -> Any:
    """A number as people write it, whole ones without a point: a column may have made them floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


def prepare_choices(pieces: Pieces, columns: Columns, labels: Sequence[str] | None, form: str = "cloze") -> Prepared:
    """Questions with options, one of which is right: the `prepare` of an `OwnKind`, which says what it is given.

    Args:
        pieces: as there.
        columns: as there.
        labels: as there; no question has labels.
        form: of the prompts, one of `QUESTION_FORMS`.

    Raises:
        UserError: a column is not there, or a row cannot be used.
    """
    with extra("train"):
        from datasets import Dataset
    check_columns(pieces, columns)
    (question,), (answer,), named = columns["question"], columns["answer"], columns["options"]
    used = list(dict.fromkeys((question, answer, *named)))

    def given(row: Row) -> tuple[Any, Options]:
        return row[answer], options_of(row[named[0]] if len(named) == 1 else [row[name] for name in named])

    def answers_of(pieces: Pieces) -> Iterator[tuple[Any, Options]]:
        for piece in pieces.values():
            for row in piece.rows(used):
                with contextlib.suppress(BadRow):  # refused with its number when the keys are made
                    yield given(row)

    def by_name(name: str, piece: Piece) -> Any:
        """The answers that are classes, by their names."""
        names = cells.declared(piece, answer)
        if names is None or names == list(map(str, range(len(names)))):
            return piece.data
        return piece.data.remove_columns(answer).add_column(answer, list(cells.values(piece, (answer,))))

    renamed = pieces.changed(by_name)
    way, fits = way_of(answers_of(renamed), named)
    rows = sum(len(piece.data) for piece in pieces.values())
    is_from_0 = any("0" in (cells.declared(piece, answer) or "0") for piece in pieces.values())
    if 2 * fits <= rows or (way == "number" and not is_from_0):  # from 1, perhaps: the place of a class counts
        way, _ = way_of(answers_of(pieces), named)
    else:
        pieces = renamed

    def read(row: Row) -> tuple[str, list[str], int]:
        value, options = given(row)
        right = right_option(value, options, named, way)
        return cells.text(row[question], question), options.texts, right

    def key(row: Row) -> str:
        asked, found, _ = read(row)
        return "\n".join((cells.same_text(asked), *sorted(map(cells.same_text, found))))

    def answers(piece: Piece) -> Iterator[Hashable]:
        for row in piece.rows(used):
            _, found, right = read(row)
            yield cells.same_text(found[right])

    row_of = max(used, key=len) + "_row"  # a name that none of them has

    def prepared(name: str, piece: Piece) -> Any:
        places = [f"{piece.name}, row {number}" for number in range(1, len(piece.data) + 1)]
        return piece.data.select_columns(used).add_column(row_of, places)

    def asked(split: Any) -> Any:
        made = []
        for row in split:
            text, options, right = read(row)
            prompt, choices = QUESTION_FORMS[form](text, options)
            made.append({"prompt": prompt, "choices": choices, "label": right, "row": row[row_of]})
        return Dataset.from_list(made)

    return Prepared(pieces.changed(prepared), used, key, answers=answers, finish=asked)
