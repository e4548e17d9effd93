"""A table of text, for the terminal and for a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


LONGEST_NAME = 40
"""Letters of a first column that is never broken into lines: of names, not of questions."""


def column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Letters of each column, of names and then of numbers: as long as its longest cell.

    Args:
        columns: the heading, and the cells.
        room: letters of all columns together; where they need more, headings of numbers are broken at their spaces.
    """
    whole = [max(map(len, column)) for column in columns]
    if sum(whole) <= room:
        return whole
    return [whole[0], *(max(map(len, (*heading.split(), *cells))) for heading, *cells in columns[1:])]


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
        return self.align.ljust(len(self.headers), self.align[-1])[: len(self.headers)]

    def rich(self) -> Table:
        """For the terminal."""
        from rich import box
        from rich.table import Table

        caption = f"{self.note}\n" if self.note else None
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.title_style, table.caption_style = "bold", ""
        names = max((len(row[0]) for row in self.rows), default=0) <= LONGEST_NAME
        for number, (header, letter) in enumerate(zip(self.headers, self._letters, strict=True)):
            table.add_column(header, justify="left" if letter == "l" else "right", no_wrap=number == 0 and names)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self, rule: str = "--:") -> str:
        """For a document.

        Args:
            rule: below the header of a column at the right.
        """
        rules = "|".join("---" if letter == "l" else rule for letter in self._letters)
        lines = [f"| {' | '.join(self.headers)} |", f"|{rules}|", *(f"| {' | '.join(row)} |" for row in self.rows)]
        return "\n".join([*lines, "", self.note] if self.note else lines)
