"""Labels of the user's own data: classes, numbers and sets of labels, and which classes there are."""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from ...errors import UserError, abridged
from .columns import json_list, values
from .source import Piece, Pieces
from .split import BadRow, NoLabel

_MOST = float(np.finfo(np.float32).max)


def class_name(value: Any) -> str:
    """The name of a class that a column has as a text, a whole number or a switch.

    Raises:
        BadRow: it is none of these.
    """
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)  # a column of whole numbers in which one is missing, or one of decimals without places
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise NoLabel("it has no label")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"its label is {value}, which is none")
    if isinstance(value, str | int):
        return str(value).strip()
    raise BadRow(
        f"the label {value!r:.40} is no text and no whole number"
        + (": is this regression?" if isinstance(value, float) else "")
    )


def number(value: Any) -> float:
    """A finite number.

    Raises:
        BadRow: it is none.
    """
    try:
        if isinstance(value, str) and "_" in value:  # which Python takes between digits
            raise ValueError(value)
        found = float(value)
    except (TypeError, ValueError):
        if value in (None, ""):
            raise NoLabel("it has no label") from None
        raise BadRow(f"the label {value!r:.40} is no number") from None
    if not math.isfinite(found):
        raise BadRow(f"the label {value!r} is not finite")
    return found


def measured(value: Any) -> float:
    """A number to be learned: one, as above, that is no boolean, which Python takes for 1 or 0."""
    if isinstance(value, bool):
        raise BadRow(f"the label {value} is no number: is this classification?")
    if abs(found := number(value)) > _MOST:
        raise BadRow(f"the label {value} is beyond {_MOST:.1e}, where float32 ends: give it in another unit")
    return found


def label_set(value: Any) -> tuple[str, ...]:
    """The labels of one example, each once.

    Raises:
        BadRow: one that is none, or what looks like a list and is none.
    """
    return tuple(dict.fromkeys(class_name(one) for one in _label_list(value)))


def _label_list(value: Any) -> Sequence[Any]:
    """The labels of one example: a list of them, or a text with commas, semicolons or bars between them.

    Raises:
        BadRow: what looks like a list and is none.
    """
    if isinstance(value, str):
        listed = json_list(value)
        if listed is None and value.lstrip().startswith(("[", "{", "(")):
            listed = _python_list(value.strip())
            if listed is None and re.match(r"\s*(\[|\{.*\}\s*$)", value, re.DOTALL):
                raise BadRow(f"the labels {value!r:.40} look like a list and are none")
        if value.strip() == "set()":
            listed = []
        value = [part for part in re.split(r"[,;|]", value) if part.strip()] if listed is None else listed
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else [value]


def vector_length(piece: Piece, column: str) -> int:
    """How many labels a column has as vectors of 0 and 1, the same number in each row; 0 where it has other labels.

    A row without labels tells nothing, and neither does a list of one.
    """
    lengths: set[int] = set()
    for value in values(piece, (column,)):
        try:
            listed = _label_list(value)
        except BadRow:
            return 0
        lengths |= {len(listed)} if listed else set()
        if len(lengths) > 1 or 1 in lengths or not all(map(is_switch, listed)):
            return 0
    return max(lengths, default=0)


def switches(value: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The names of those of several columns that are on.

    Raises:
        BadRow: one that is neither on (1, true, yes) nor off (0, false, no).
    """
    on = []
    for name, one in zip(names, value, strict=True):
        if not is_switch(one):
            raise BadRow(f"'{name}' is {one!r:.40}, which is neither 0 nor 1")
        on += [name] if _word(one) in ("1", "true", "yes") else []
    return tuple(on)


def is_switch(value: Any) -> bool:
    """Whether it is on or off."""
    return _word(value) in ("0", "1", "true", "false", "yes", "no")


def _word(value: Any) -> str:
    return str(value).strip().casefold().removesuffix(".0")


def _python_list(value: str) -> list[Any] | None:
    """The list, set or tuple that a text holds as Python writes it, or the texts as NumPy does, with no commas, such as
    pandas in a CSV file; None where it is none."""
    try:
        body = ast.parse(value, mode="eval").body
        if not isinstance(body, ast.List | ast.Set | ast.Tuple):
            return None
        found = [ast.literal_eval(one) for one in body.elts]
        tokens = list(tokenize.generate_tokens(io.StringIO(value).readline))
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    written = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    if written == [one for one in found if isinstance(one, str)]:
        return found
    # of texts side by side Python makes one
    return written if isinstance(body, ast.List) and not any(token.string == "," for token in tokens) else None


def in_order(names: set[str]) -> list[str]:
    """Class names as people sort them: numbers by their size."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else (0, name))


def classes_of_data(
    pieces: Pieces, labels: dict[str, list[tuple[str, ...]]], known: list[str] | None = None
) -> dict[str, int]:
    """The classes, in label order, each with the number of rows of all pieces that have it.

    Args:
        pieces: the data.
        labels: the labels of each row of each piece.
        known: those that the data declares.

    Raises:
        UserError: a class that training has not seen, one class alone, or one with a single example where train and
            test come from the same rows.
    """
    train = pieces["train"].name
    counts = Counter(one for some in labels["train"] for one in some)
    names = known or in_order(set(counts))
    there = abridged([repr(name) for name in names if name in counts])
    _check_known(pieces, labels, counts, f"is in no row of {train} (its labels: {there})")
    if len(counts) < 2:
        only = "".join(map(repr, counts)) or "none"
        raise UserError(f"{train} has one label only, {only}: there is nothing to tell apart")
    single = [one for one, count in counts.items() if count == 1]
    if single and len(pieces) == 1:
        numbers = all(re.fullmatch(r"-?[\d.]+", one) for one in counts)
        hint = ": is this regression?" if numbers and 2 * len(single) > len(counts) else ""
        row = next(row for row, some in enumerate(labels["train"], start=1) if single[0] in some)
        more = f" (as have {len(single) - 1:,} more)" if len(single) > 1 else ""
        raise UserError(
            f"{train}, row {row}: the label '{single[0]}' has one example{more}, and training and testing need one "
            f"each{hint or ': add examples, or leave it out'}"
        )
    return _counted(labels, names)


def classes_of_run(pieces: Pieces, labels: dict[str, list[tuple[str, ...]]], known: Sequence[str]) -> dict[str, int]:
    """The classes of data for a finished run, which has learned those that are `known`; see `classes_of_data`.

    Raises:
        UserError: another one; names its row.
    """
    allowed = abridged(list(map(repr, known)))
    _check_known(pieces, labels, known, f"is none of those that the run has learned (allowed: {allowed})")
    return _counted(labels, known)


def _check_known(
    pieces: Pieces, labels: dict[str, list[tuple[str, ...]]], known: Collection[str], otherwise: str
) -> None:
    """Raise a UserError for the first label that is not known; `otherwise` says what it is then."""
    there = set(known)
    for name, piece in pieces.items():
        for row, some in enumerate(labels[name], start=1):
            if unseen := [one for one in some if one not in there]:
                raise UserError(f"{piece.name}, row {row}: the label '{unseen[0]}' {otherwise}")


def _counted(labels: dict[str, list[tuple[str, ...]]], names: Sequence[str]) -> dict[str, int]:
    every = Counter(one for found in labels.values() for some in found for one in some)
    return {name: every[name] for name in names}
