"""Columns of the user's own data: texts, classes, numbers and sets of labels, each row checked."""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from decimal import Decimal
from typing import Any

from ...errors import UserError, abridged
from ..vision import class_names
from .source import Piece, Pieces
from .split import BadRow, BadRows, NoLabel

Values = dict[str, list[Any]]
"""The labels of each piece, in the order of its rows."""
_MOST = 3.4e38
"""Where float32 ends."""
IS_REGRESSION = "is this regression? `aurora train regression` learns numbers"
IS_CLASSIFICATION = "is this classification? `aurora train classification` learns words"


def text(value: Any, column: str) -> str:
    """A text that is not blank, or a BadRow."""
    if value is None or not str(value).strip():
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
    return [name.strip() for name in class_names(piece.data, column)] or None


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
    """The values of all pieces, converted; `BadRows` where some cannot be."""
    found: Values = {name: [] for name in pieces}
    for name, piece in pieces.items():
        bad: dict[int, ValueError] = {}
        for number, value in enumerate(values(piece, columns), start=1):
            try:
                found[name].append(convert(value))
            except BadRow as error:
                bad[number] = error.with_traceback(None)
        if bad:
            raise BadRows(piece, bad)
    return found


def json_list(value: str) -> list[Any] | None:
    """The list that a text holds as JSON, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        return found if isinstance(found := json.loads(value), list) else None
    return None


# ---------------------------------------------------------------- labels


def class_name(value: Any) -> str:
    """The name of a class that a column has as a text, a whole number or a switch, or a BadRow."""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)  # a column of whole numbers in which one is missing, or one of decimals without places
    if value is None or not str(value).strip():
        raise NoLabel("it has no label")
    if isinstance(value, str | int):
        return str(value).strip()
    hint = f": {IS_REGRESSION}" if isinstance(value, float) else ""
    raise BadRow(f"the label {value!r:.40} is no text and no whole number{hint}")


def number(value: Any) -> float:
    """A number to be learned: finite, in float32 too, and no boolean, which Python takes for 1 or 0; or a BadRow."""
    if value in (None, ""):
        raise NoLabel("it has no label")
    if isinstance(value, bool):
        raise BadRow(f"the label {value} is no number: {IS_CLASSIFICATION}")
    try:
        found = float("_" if isinstance(value, str) and "_" in value else value)  # which Python takes between digits
    except (TypeError, ValueError):
        hint = ": task.decimal_comma=true reads decimal commas" if re.fullmatch(r"\W?\d*,\d+", str(value)) else ""
        raise BadRow(f"the label {value!r:.40} is no number{hint}") from None
    if not abs(found) <= _MOST:
        raise BadRow(f"the label {value} is not finite, or beyond {_MOST:.1e}, where float32 ends")
    return found


def label_set(value: Any) -> tuple[str, ...]:
    """The labels of one example, each once: of a list, also one written as JSON or Python shows it, or of a text with
    commas, semicolons or bars between them; a BadRow where one is none, or what looks like a list is none."""
    if isinstance(value, str):
        listed = json_list(value)
        if listed is None and re.match(r"\s*(\[|\{.*\}\s*$|\(.*,.*\)\s*$|set\(\))", value, re.DOTALL):
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                listed = list(ast.literal_eval(value.strip()))
            if listed is None or re.search(r"['\"]\s+['\"]", value):  # of texts side by side Python makes one
                raise BadRow(f"the labels {value!r:.40} look like a list and are none")
        value = [part for part in re.split(r"[,;|]", value) if part.strip()] if listed is None else listed
    several = () if value is None else value if isinstance(value, list | tuple) else (value,)
    return tuple(dict.fromkeys(map(class_name, several)))


def switches(value: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The names of those of several columns that are on; a BadRow where one is neither that (1, true, yes) nor off."""
    words = {name: str(one).strip().casefold().removesuffix(".0") for name, one in zip(names, value, strict=True)}
    for name, word in words.items():
        if word not in ("0", "1", "true", "false", "yes", "no"):
            raise BadRow(f"'{name}' is {word!r:.40}, which is neither 0 nor 1")
    return tuple(name for name, word in words.items() if word in ("1", "true", "yes"))


def _in_order(names: Collection[str]) -> list[str]:
    """Class names as people sort them: numbers by their size."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else (0, name))


def _near(name: str, others: Collection[str]) -> str:
    """A hint at the label that may be meant by one that is no number."""
    known = {one.casefold(): one for one in others}
    near = [] if re.search(r"\d", name) else difflib.get_close_matches(name.casefold(), known, n=1)
    return f"; did you mean '{known[near[0]]}'?" if near else ""


def classes_of(
    pieces: Pieces, labels: dict[str, list[tuple[str, ...]]], learned: Sequence[str] | None, known: list[str] | None
) -> dict[str, int]:
    """The classes, in label order, each with the number of rows of all pieces that have it: those that a finished run
    has `learned`, that the data declares (`known`), or that the training rows have. A UserError is raised for a class
    that training has not seen, one class alone, or one with a single example where train and test are the same rows."""
    counts = Counter(one for some in labels.get("train", ()) for one in some)
    names = list(learned) if learned is not None else known or _in_order(counts)
    allowed = set(counts if learned is None else learned)
    shown = abridged([repr(name) for name in names if name in allowed])
    for name, piece in pieces.items():
        for row, one in ((row, one) for row, some in enumerate(labels[name], start=1) for one in some):
            if one not in allowed:
                where = f"in no row of {pieces['train'].name}" if learned is None else "none that the run has learned"
                place = piece.places()[row - 1]
                raise UserError(
                    f"{piece.name}, {place}: the label '{one}' is {where} (its labels: {shown}){_near(one, allowed)}"
                )
    if learned is None and len(counts) < 2:
        raise UserError(f"{pieces['train'].name} has one label only, {shown or 'none'}: there is nothing to tell apart")
    single = {one for one, count in counts.items() if count == 1}
    if learned is None and single and len(pieces) == 1:
        places, others, ones = pieces["train"].places(), set(counts) - single, list[str]()
        for row, some in enumerate(labels["train"]):
            ones += [f"'{one}' ({places[row]}{_near(one, others)})" for one in some if one in single]
        numbers = all(re.fullmatch(r"[-+]?\d*\.?\d+", one) for one in counts)
        raise UserError(
            f"{pieces['train'].name}: training and testing need an example each of every label, and there is one of "
            f"{abridged(ones, 3)}: {IS_REGRESSION if numbers else 'add examples, or leave it out'}"
        )
    every = Counter(one for found in labels.values() for some in found for one in some)
    return {name: every[name] for name in names}
