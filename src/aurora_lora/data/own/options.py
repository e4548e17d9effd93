"""The options of a question in the user's own data, and which of them its answer is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .columns import json_list, text
from .split import BadRow, NoLabel

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
        """What each option is called, by each of `WAYS`.

        Args:
            columns: that they come from, blank ones too.
        """
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
    are_numbers = any(isinstance(one, int | float) for one in given)
    return Options(found, [labels[place] for place in places if place < len(labels)], places, are_numbers)


def way_of(answers: Iterable[tuple[Any, Options]], columns: Sequence[str], counts: bool = True) -> tuple[str, int]:
    """The way in which a column of answers names options, and how many rows it fits: the first of `WAYS` that fits
    every row, or else the one that fits most.

    A whole number that is no text counts options before it is the text of one, unless the options are numbers.

    Args:
        answers: as they stand in the data, each with its options.
        columns: that the options come from.
        counts: whether a number may count the options; not where it is the name of a class.
    """
    fits, are_counted = Counter[str](), True
    for value, options in answers:
        fits.update(way for way, names in options.names(columns).items() if _word(value) in names)
        are_counted &= not options.are_numbers and (value is None or isinstance(value, int | float))
    ways = [way for way in WAYS if counts or way != "number"]
    if are_counted and counts:
        ways.insert(ways.index("text"), ways.pop())
    found = max(ways, key=lambda way: fits[way])  # the first of equal ones
    return found, fits[found]


def right_option(value: Any, options: Options, columns: Sequence[str], way: str, counts: bool = True) -> int:
    """Which option is right.

    Args:
        value: the answer as it stands in the data.
        options: one of which it is.
        columns: that these come from.
        way: of `WAYS`, in which it names one.
        counts: as above.

    Raises:
        BadRow: none of them, or there is none, or two options are the same.
    """
    if twice := next((one for one, count in Counter(options.texts).items() if count > 1), None):
        raise BadRow(f"two of the options are {twice!r:.40}: each must be another")
    word, names = _word(value), options.names(columns)
    if word in names[way]:
        return names[way].index(word)
    if not word:
        raise NoLabel("it has no answer")
    letters, numbers = names["letter"], names["number"]
    if other := next((WAYS[one] for one in WAYS if word in names[one] and (counts or one != "number")), None):
        raise BadRow(
            f"the answer {word!r:.40} names an option by {other}, and those of other rows by {WAYS[way]}: all must do "
            "it in one way"
        )
    raise BadRow(
        f"the answer {word!r:.40} is none of the options: it must be one of them, {letters[0]} to {letters[-1]}"
        + (f", or 0 to {numbers[-1]}" if counts and not options.are_numbers else "")
    )


def _word(value: Any) -> str:
    return "" if value is None else str(_written(value)).strip()


def _written(value: Any) -> Any:
    """A number as people write it, whole ones without a point: a column may have made them floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value
