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

    Where it does not, texts and the headings of numbers are broken at spaces; if that is not enough, numbers are too,
    and at last the names in the first column.

    Args:
        columns: the heading, and the cells.
        room: letters of all columns together.
        align: as of a `TextTable`.
    """
    widths = [max(map(len, column)) for column in columns]
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    cells = [max(least, *map(len, column[1:]), 0) for least, column in zip(words, columns, strict=True)]
    letters = _letters(align, len(columns))
    unbroken = [least if letter == "l" else whole for letter, least, whole in zip(letters, words, cells, strict=True)]
    name = cells[0] if cells[0] <= LONGEST_NAME else words[0]
    for least in ([name, *unbroken[1:]], [name, *words[1:]], words):
        while sum(widths) > room and (wide := [n for n, width in enumerate(widths) if width > least[n]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _letters(align: str, count: int) -> str:
    return align.ljust(count, align[-1])[:count]


@dataclass
class TextTable:
    """A table before it has a form.

    Args:
        title: above it; not in Markdown.
        headers: of the columns.
        rows: cells, as many as there are headers.
        note: below it.
        align: left or right, `"l"` or `"r"` for each column; the last letter is for all that follow too.
    """

    title: str
    headers: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    align: str = "lr"

    @property
    def _letters(self) -> str:
        return _letters(self.align, len(self.headers))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """For the terminal."""
        from rich import box
        from rich.table import Table

        caption = f"{self.note}\n" if self.note else None
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.title_style, table.caption_style = "bold", ""
        room = options.max_width - 2 * len(self.headers) - 1  # a space at each edge, and two between columns
        widths = column_widths([*zip(self.headers, *self.rows, strict=True)], room, self.align)
        for header, letter, width in zip(self.headers, self._letters, widths, strict=True):
            table.add_column(header, justify="left" if letter == "l" else "right", width=width)
        for row in self.rows:
            table.add_row(*row)
        yield table

    def markdown(self, rule: str = "--:") -> str:
        """For a document; a cell of several lines becomes one.

        Args:
            rule: below the header of a column at the right.
        """
        rules = "|".join("---" if letter == "l" else rule for letter in self._letters)
        lines = [_markdown_row(self.headers), f"|{rules}|", *map(_markdown_row, self.rows)]
        return "\n".join([*lines, "", self.note] if self.note else lines)


def _markdown_row(cells: Sequence[str]) -> str:
    plain = (re.sub(r"\s*\n\s*", " ", cell.strip()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(plain)} |"
