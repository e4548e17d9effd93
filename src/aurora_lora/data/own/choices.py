"""Questions with options in the user's own data, whichever way their answers are told, ready to be split."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...extras import extra
from ..prompts import QUESTION_FORMS
from . import columns as cells
from .source import Columns, Piece, Pieces
from .split import BadRow, NoLabel, Prepared, Row

WAYS = ("label", "column", "text", "letter", "number")
"""What answers may name an option by, in the order in which they are tried: `label` is what the data call it; numbers
begin with 0."""


@dataclass(frozen=True)
class Options:
    """The options of a question: those that are not blank, their places (blank ones counted), what each is called by
    each of `WAYS`, and whether there are numbers among them."""

    texts: list[str]
    places: list[int]
    names: dict[str, list[str]]
    are_numbers: bool


def options_of(value: Any, columns: Sequence[str] = ()) -> Options:
    """What there is to choose from; a BadRow where there are fewer than two, one is no text, or two are the same.

    Args:
        value: a list of texts, also as JSON in a text, or `{"text": [...], "label": [...]}`, as on the hub.
        columns: that the options come from, blank ones too, where each has its own.
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
    names = {
        "label": [labels[place] for place in places if place < len(labels)],
        "column": [columns[place] for place in places] if len(columns) > max(places) else [],
        "text": found,
        "letter": [chr(ord("A") + place) for place in places],
        "number": [str(place) for place in places],
    }
    return Options(found, places, names, any(isinstance(value[place], int | float) for place in places))


def _way_of(answers: Iterable[tuple[Any, Options]]) -> str:
    """The way in which a column of answers names options: the first of `WAYS` that fits most rows.

    A whole number that is no text counts options before it is the text of one, unless the options are numbers.
    """
    fits, are_counted = Counter[str](), True
    for value, options in answers:
        fits.update(way for way, names in options.names.items() if _word(value) in names)
        are_counted &= not options.are_numbers and (value is None or isinstance(value, int | float))
    ways = list(WAYS)
    if are_counted:
        ways.insert(ways.index("text"), ways.pop())
    return max(ways, key=lambda way: fits[way])  # the first of equal ones


def _right_option(value: Any, options: Options, way: str) -> int:
    """Which option an answer names in a way; a BadRow where it is none of them."""
    word, names = _word(value), options.names[way]
    if word in names:
        return names.index(word)
    if not word:
        raise NoLabel("it has no answer")
    raise BadRow(
        f"the answer {word!r:.40} is none of the options by {way}, as most of its column are ({', '.join(names)})"
    )


def _word(value: Any) -> str:
    return "" if value is None else str(_written(value)).strip()


def _written(value: Any) -> Any:
    """A number as people write it, whole ones without a point: a column may have made them floats."""
    return (f"{value:.0f}" if float(value).is_integer() else str(value)) if isinstance(value, int | float) else value


def prepare_choices(pieces: Pieces, columns: Columns, labels: Sequence[str] | None, form: str = "cloze") -> Prepared:
    """Questions with options, one of which is right, in a form of `QUESTION_FORMS`: the `prepare` of an `OwnKind`."""
    with extra("train"):
        from datasets import Dataset
    pieces.check_columns(columns)
    (question,), (answer,), named = columns["question"], columns["answer"], columns["options"]
    used = list(dict.fromkeys((question, answer, *named)))

    def given(row: Row) -> tuple[Any, Options]:
        return row[answer], options_of(row[named[0]] if len(named) == 1 else [row[name] for name in named], named)

    def by_name(name: str, piece: Piece) -> Any:
        """The answers that are classes, by their names, unless these only count."""
        names = cells.declared(piece, answer)
        if names is None or names in ([str(n + first) for n in range(len(names))] for first in (0, 1)):
            return piece.data
        return piece.data.remove_columns(answer).add_column(answer, list(cells.values(piece, (answer,))))

    def answers_of() -> Iterator[tuple[Any, Options]]:
        for piece in pieces.values():
            for row in piece.rows(used):
                with contextlib.suppress(BadRow):  # refused with its number when the keys are made
                    yield given(row)

    pieces = pieces.changed(by_name)
    way = _way_of(answers_of())

    def read(row: Row) -> tuple[str, list[str], int]:
        value, options = given(row)
        return cells.text(row[question], question), options.texts, _right_option(value, options, way)

    def key(row: Row) -> str:
        asked, found, _ = read(row)
        return "\n".join((cells.same_text(asked), *sorted(map(cells.same_text, found))))

    row_of = max(used, key=len) + "_row"  # a name that none of them has

    def prepared(name: str, piece: Piece) -> Any:
        places = [f"{piece.name}, {place}" for place in piece.places()]
        return piece.data.select_columns(used).add_column(row_of, places)

    def asked(split: Any) -> Any:
        made = []
        for row in split:
            text, options, right = read(row)
            prompt, choices = QUESTION_FORMS[form](text, options)
            made.append({"prompt": prompt, "choices": choices, "label": right, "row": row[row_of]})
        return Dataset.from_list(made)

    return Prepared(pieces.changed(prepared), used, key, finish=asked)
