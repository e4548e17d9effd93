"""The options of a question in the user's own data, and which of them its answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .columns import json_list, text
from .split import BadRow


def options_of(value: Any) -> tuple[list[str], list[str], list[int], bool]:
    """The options of a question, the names by which its answer may call them, their places before blanks went, and
    whether there are numbers among them.

    Args:
        value: a list of texts, also as JSON in a text, or `{"text": [...], "label": [...]}`, as on the hub.

    Raises:
        BadRow: fewer than two, or one that is no text.
    """
    labels: list[str] = []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value, labels = value["text"], [str(one) for one in value.get("label") or ()]
    if isinstance(value, str):
        value = json_list(value)
    if not isinstance(value, list):
        raise BadRow("the options are no list: name several columns, or a column with a list")
    places = [place for place, one in enumerate(value) if one not in (None, "")]
    given = [value[place] for place in places]
    found = [text(_written(one), "options").strip() for one in given]
    if len(found) < 2:
        raise BadRow(f"there are {len(found)} options: a question needs two")
    of_numbers = any(isinstance(one, int | float) for one in given)
    return found, [labels[place] for place in places if place < len(labels)], places, of_numbers


def right_option(
    value: Any,
    found: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[str],
    places: Sequence[int],
    of_numbers: bool = False,
    counts: bool = True,
) -> int:
    """Which option is right: its text, its letter, the name of its column, or its number from 0.

    A whole number that is no text counts options from 0, unless the options are numbers themselves.

    Args:
        value: the answer as it stands in the data.
        found: the options.
        labels: what the data call them.
        columns: the columns that they come from, blank ones too.
        places: of the options, blank ones counted.
        of_numbers: whether the options are numbers, not texts.
        counts: whether a number may count the options; not where it is the name of a class.

    Raises:
        BadRow: none of them.
    """
    word = "" if value is None else str(_written(value)).strip()
    letters, numbers = [chr(ord("A") + place) for place in places], [str(place) for place in places]
    named = [columns[place] for place in places] if len(columns) > max(places) else []
    ways = [found, labels, named, letters, *([numbers] if counts else [])]
    if isinstance(value, int | float):
        ways = [found, labels, named, letters] if of_numbers else [labels, numbers, found, named, letters]
    for names in ways:
        if word in names:
            return names.index(word)
    raise BadRow(
        f"the answer {word!r:.40} is none of the options: it must be one of them, {letters[0]} to {letters[-1]}"
        + (f", or 0 to {numbers[-1]}" if counts and not of_numbers else "")
    )


def _written(value: Any) -> Any:
    """A number as people write it, whole ones without a point: a column may have made them floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value
