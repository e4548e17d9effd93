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
"""Letters of a first column of names, not of questions: one that is not broken."""


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
            values, at the left; `"r"`, numbers, at the right. Values, numbers and names in the first column are not
            broken into lines where there is room for that.
    """

    title: str
    headers: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    align: str = "lr"

    @property
    def _letters(self) -> str:
        return self.align.ljust(len(self.headers), self.align[-1])[: len(self.headers)]

    def _widths(self, unbroken: str) -> list[int]:
        """Letters that each column needs, where the cells of columns of some letters, and names, are not broken."""
        found: list[int] = []
        for column, letter in zip(zip(self.headers, *self.rows, strict=True), self._letters, strict=True):
            lines = [line for text in column[1:] for line in text.split("\n")]
            cell = max(map(len, lines), default=0)
            word = max((len(word) for text in (column[0], *lines) for word in text.split()), default=0)
            is_name = not found and "l" in unbroken and cell <= LONGEST_NAME
            found.append(max(cell, word) if is_name or (letter in unbroken and letter != "l") else word)
        return found

    @property
    def _between(self) -> int:
        """Letters beside the cells in a terminal: a space at each edge, and two between columns."""
        return 2 * len(self.headers) + 1

    @property
    def least_width(self) -> int:
        """Letters of a line in a terminal that break no number and no value."""
        return sum(self._widths("vr")) + self._between

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The table for the terminal; where it is narrow, names are broken first, then values, numbers last."""
        from rich import box
        from rich.table import Table

        caption = f"{self.note}\n" if self.note else None
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.title_style, table.caption_style = "bold", ""
        room = options.max_width - self._between
        choices = [self._widths(unbroken) for unbroken in ("lvr", "vr", "r", "")]
        widths = next((some for some in choices if sum(some) <= room), choices[-1])
        words = self._widths("")  # columns that need no more can be made narrower by rich
        for header, letter, width, word in zip(self.headers, self._letters, widths, words, strict=True):
            fixed = width if width > word or letter == "r" else None
            table.add_column(header, justify="right" if letter == "r" else "left", width=fixed, overflow="fold")
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
