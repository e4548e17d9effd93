"""A table of text, for the terminal and for a document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table


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
            values, at the left; `"r"`, numbers, at the right. Values and numbers are not broken into lines where there
            is room for that.
    """

    title: str
    headers: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    align: str = "lr"

    @property
    def letters(self) -> str:
        """The letter of each column."""
        return self.align.ljust(len(self.headers), self.align[-1])[: len(self.headers)]

    def _least_widths(self, whole: str = "vr") -> list[int]:
        """Letters that each column needs at least: for its longest word, or for a whole cell, by its letter."""
        found = []
        for column, letter in zip(zip(self.headers, *self.rows, strict=True), self.letters, strict=True):
            lines = [line for text in column[1:] for line in text.split("\n")] if letter in whole else []
            found.append(max(map(len, [*lines, *" ".join(column).split()]), default=0))
        return found

    @property
    def least_width(self) -> int:
        """Letters of a line in a terminal that break no number and no value."""
        return self._total(self._least_widths())

    def _total(self, widths: Sequence[int]) -> int:
        return sum(widths) + 2 * len(widths) + 1  # a space at each edge, two between columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The table for the terminal; where it is narrow, texts are broken before values and numbers."""
        from rich import box
        from rich.table import Table

        caption = f"{self.note}\n" if self.note else None
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.title_style, table.caption_style = "bold", ""
        fitting = (some for some in ("vr", "r") if self._total(self._least_widths(some)) <= options.max_width)
        whole = next(fitting, "")
        for header, letter, needed in zip(self.headers, self.letters, self._least_widths(whole), strict=True):
            justify: Literal["left", "right"] = "right" if letter == "r" else "left"
            width = needed if letter == "r" or letter in whole else None
            table.add_column(header, justify=justify, width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*map(printable, row))
        yield table

    def markdown(self, rule: str = "--:") -> str:
        """The table as Markdown; a cell of several lines becomes one.

        Args:
            rule: below the header of a column at the right.
        """
        rules = "|".join(rule if letter == "r" else "---" for letter in self.letters)
        lines = [_markdown_row(self.headers), f"|{rules}|", *map(_markdown_row, self.rows)]
        return "\n".join([*lines, "", self.note] if self.note else lines)


def _markdown_row(cells: Sequence[str]) -> str:
    plain = (re.sub(r"\s*\n\s*", " ", cell.strip()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(plain)} |"
