"""A table of text, for the terminal and for a document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table


LONGEST_NAME = 40
"""Letters of a first column of names, not of questions: it is the last to be broken into lines."""


def column_widths(columns: Sequence[Sequence[str]], room: int, align: str = "lr") -> list[int]:
    """Letters of each column: those of its longest cell, where that fits.

    Where it does not, the headings of numbers and values are broken at spaces, then texts, then the names in the first
    column; only where the room is less than `least_widths` also values, and at last numbers.

    Args:
        columns: the heading, and the cells.
        room: letters of all columns together.
        align: as of a `TextTable`.
    """
    widths = [max(map(_length, column)) for column in columns]
    words, cells = _longest(columns)
    least = least_widths(columns, align)
    name = cells[0] if cells[0] <= LONGEST_NAME else words[0]
    letters = _letters(align, len(columns))
    values = [word if letter == "v" else one for letter, word, one in zip(letters, words, least, strict=True)]
    headings = [whole if letter == "l" else one for letter, whole, one in zip(letters, widths, least, strict=True)]
    for bounds in (headings, [max(name, least[0]), *least[1:]], least, values, words):
        while sum(widths) > room and (wide := [n for n, width in enumerate(widths) if width > bounds[n]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def least_widths(columns: Sequence[Sequence[str]], align: str = "lr") -> list[int]:
    """Letters of each column that break texts and headings at every space, and no number and no value.

    Args:
        columns: the heading, and the cells.
        align: as of a `TextTable`.
    """
    letters = _letters(align, len(columns))
    return [word if letter == "l" else cell for letter, word, cell in zip(letters, *_longest(columns), strict=True)]


def _longest(columns: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """Letters of the longest word of each column, and of its longest cell, whose heading may be broken."""
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    return words, [max(word, *map(_length, column[1:]), 0) for word, column in zip(words, columns, strict=True)]


def _length(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _letters(align: str, count: int) -> str:
    return align.ljust(count, align[-1])[:count]


def printable(text: str) -> str:
    """A text for the terminal: what would control it, such as escape sequences in a label, is shown as `\\x1b`."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda one: f"\\x{ord(one[0]):02x}", text)


@dataclass
class TextTable:
    """A table before it has a form.

    Args:
        title: above it; not in Markdown.
        headers: of the columns.
        rows: cells, as many as there are headers.
        note: below it.
        align: a letter for each column, the last one for all that follow too: `"l"`, texts, at the left; `"v"`,
            values, at the left, broken only where numbers nearly are; `"r"`, numbers, at the right.
    """

    title: str
    headers: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    align: str = "lr"

    @property
    def _letters(self) -> str:
        return _letters(self.align, len(self.headers))

    @property
    def _columns(self) -> list[Sequence[str]]:
        return [*zip(self.headers, *self.rows, strict=True)]

    @property
    def _between(self) -> int:
        """Letters beside the cells in a terminal: a space at each edge, and two between columns."""
        return 2 * len(self.headers) + 1

    @property
    def least_width(self) -> int:
        """Letters of a line in a terminal that break no number and no value."""
        return sum(least_widths(self._columns, self.align)) + self._between

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The table for the terminal."""
        from rich import box
        from rich.table import Table

        caption = f"{self.note}\n" if self.note else None
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.title_style, table.caption_style = "bold", ""
        widths = column_widths(self._columns, options.max_width - self._between, self.align)
        for header, letter, width in zip(self.headers, self._letters, widths, strict=True):
            table.add_column(header, justify="right" if letter == "r" else "left", width=width)
        for row in self.rows:
            table.add_row(*map(printable, row))
        yield table

    def markdown(self, rule: str = "--:") -> str:
        """The table as Markdown; a cell of several lines becomes one.

        Args:
            rule: below the header of a column at the right.
        """
        rules = "|".join(rule if letter == "r" else "---" for letter in self._letters)
        lines = [_markdown_row(self.headers), f"|{rules}|", *map(_markdown_row, self.rows)]
        return "\n".join([*lines, "", self.note] if self.note else lines)


def _markdown_row(cells: Sequence[str]) -> str:
    plain = (re.sub(r"\s*\n\s*", " ", cell.strip()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(plain)} |"
