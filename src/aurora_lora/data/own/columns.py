"""Columns of the user's own data: what stands in them, each row checked."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import vision
from .source import Piece, Pieces
from .split import BadRow, bad_row

Values = dict[str, list[Any]]
"""The labels of each piece, in the order of its rows."""


def text(value: Any, column: str) -> str:
    """A text that is not blank.

    Raises:
        BadRow: it is none.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"'{column}' is empty")
    if not isinstance(value, str):
        raise BadRow(f"'{column}' is {value!r:.40}, which is no text")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that are no text, as Python reads a command's arguments and input
        raise BadRow(f"'{column}' is {value!r:.40}, which is no UTF-8") from None
    return value


class _Apart(dict[int, str]):
    """For `str.translate`: a space for what is neither a letter, a mark on one, a digit nor a symbol."""

    def __missing__(self, code: int) -> str:
        return self.setdefault(code, " " if unicodedata.category(chr(code))[0] in "PZC" else chr(code))


_APART = _Apart()


def same_text(value: str) -> str:
    """What decides that two texts are the same: all but case, the encoding of accents, punctuation and spaces.

    >>> same_text("...A  pretentious MESS!") == same_text("A pretentious mess")
    True
    >>> same_text("5 + 3") == same_text("5 < 3")
    False
    """
    folded = value.lower() if value.isascii() else unicodedata.normalize("NFKC", value).casefold()
    return " ".join(folded.translate(_APART).split()) or folded


def declared(piece: Piece, column: str) -> list[str] | None:
    """The class names that a column of the data declares, for one label or for a list of them."""
    return [name.strip() for name in vision.class_names(piece.data, column)] or None


def values(piece: Piece, columns: Sequence[str]) -> Iterator[Any]:
    """What stands in a column, or the list of what stands in several; a class as its name, also in a list of them."""
    names = {column: declared(piece, column) for column in columns}
    for row in piece.rows(columns):
        found = [_named(row[column], names[column]) for column in columns]
        yield found[0] if len(found) == 1 else found


def _named(value: Any, names: Sequence[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if value is not None and 0 <= value < len(names) else None  # -1: the label is not public


def read(pieces: Pieces, columns: Sequence[str], convert: Callable[[Any], Any]) -> Values:
    """The values of all pieces, converted.

    Raises:
        UserError: one that cannot be; names its row.
    """
    found: Values = {}
    for name, piece in pieces.items():
        found[name] = []
        for number, value in enumerate(values(piece, columns), start=1):
            try:
                found[name].append(convert(value))
            except BadRow as error:
                raise bad_row(piece, number, error) from error
    return found


def json_list(value: str) -> list[Any] | None:
    """The list that a text holds as JSON, or None."""
    try:
        found = json.loads(value) if value.lstrip().startswith("[") else None
    except ValueError:
        return None
    return found if isinstance(found, list) else None
