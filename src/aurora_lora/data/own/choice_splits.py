"""Splits of questions with options: whichever way their answers are told, and whatever order the options are in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...extras import extra
from ..prompts import QUESTION_FORMS
from . import columns as cells
from .options import Options, options_of, right_option, way_of
from .prepared import Prepared
from .source import Columns, Piece, Pieces, check_columns
from .split import BadRow, Row


def prepare_choices(pieces: Pieces, columns: Columns, labels: Sequence[str] | None, form: str = "cloze") -> Prepared:
    """Questions with options, one of which is right: the `prepare` of an `OwnKind`, which says what it is given.

    Args:
        pieces, columns, labels: as there; no question has labels.
        form: of the prompts, one of `QUESTION_FORMS`.

    Raises:
        UserError: a column is not there, or a row cannot be used.
    """
    with extra("train"):
        from datasets import Dataset
    check_columns(pieces, columns)
    (question,), (answer,), named = columns["question"], columns["answer"], columns["options"]

    def given(row: Row) -> tuple[Any, Options]:
        return row[answer], options_of(row[named[0]] if len(named) == 1 else [row[name] for name in named])

    used = [question, answer, *named]
    names = {name for piece in pieces.values() for name in cells.declared(piece, answer) or ()}
    zero = "0" in names  # without it nobody tells whether numbers that are names of classes begin at 1
    way_in = functools.partial(_way, given=given, used=used[1:], columns=named)
    declared = _answers_by_name(pieces, answer, functools.partial(way_in, counts=zero))
    pieces, counts = (pieces, True) if declared is None else (declared, zero)
    way, _ = way_in(pieces.values(), counts=counts)

    def read(row: Row) -> tuple[str, list[str], int]:
        value, options = given(row)
        right = right_option(value, options, named, way, counts)
        return cells.text(row[question], question), options.texts, right

    def key(row: Row) -> str:
        asked, found, _ = read(row)
        return "\n".join((cells.same_text(asked), *sorted(map(cells.same_text, found))))

    def answers(piece: Piece) -> Iterator[Hashable]:
        for row in piece.rows(used):
            _, found, right = read(row)
            yield cells.same_text(found[right])

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
    record: dict[str, Any] = {}
    if form == "instruction" and "train" in pieces:
        places = set()
        for row in pieces["train"].rows(used):
            with contextlib.suppress(BadRow):  # refused with its number when the keys are made
                places.add(read(row)[2])
        if len(places) == 1:
            record["only_place"] = places.pop()
    return Prepared(ready, used, key, answers=answers, finish=asked, record=record)


def _way(
    pieces: Iterable[Piece],
    given: Callable[[Row], tuple[Any, Options]],
    used: Sequence[str],
    columns: Sequence[str],
    counts: bool,
) -> tuple[str, int]:
    """The way of the rows of pieces (`way_of`), of those that have options: others are refused when they are read."""

    def answers() -> Iterator[tuple[Any, Options]]:
        for piece in pieces:
            for row in piece.rows(used):
                with contextlib.suppress(BadRow):
                    yield given(row)

    return way_of(answers(), columns, counts)


def _answers_by_name(pieces: Pieces, answer: str, way: Callable[[Sequence[Piece]], tuple[str, int]]) -> Pieces | None:
    """Answers that the data declares as classes by their names, where these are what the options go by: where most
    rows can be read in one `way` so. None elsewhere: there, and where each name is its own place, the place of a class
    counts options, as any whole number does.
    """

    def by_name(piece: Piece) -> Piece:
        names = cells.declared(piece, answer)
        if names is None or names == [str(place) for place in range(len(names))]:
            return piece
        answers = list(cells.values(piece, (answer,)))
        return replace(piece, data=piece.data.remove_columns(answer).add_column(answer, answers))

    named = {name: by_name(piece) for name, piece in pieces.items()}
    changed = [piece for name, piece in named.items() if piece is not pieces[name]]
    _, fits = way(changed)
    return Pieces(named, pieces.files) if 2 * fits > sum(len(piece.data) for piece in changed) else None
