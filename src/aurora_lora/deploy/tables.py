"""Tables of reports for a terminal and a notebook; needs rich."""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..files import NOT_FINITE

WIDTH = 80
"""The width of a table, in columns of a terminal."""
ROWS = 20
"""The most layers of a table whose first layers matter most."""


def as_text(tables: Iterable[Table]) -> str:
    """The tables, one below the other, 80 characters wide."""
    text = io.StringIO()
    plain: dict[str, Any] = {"markup": False, "emoji": False, "color_system": None}  # names of layers, as they are
    console = Console(file=text, width=WIDTH, force_terminal=False, force_jupyter=False, **plain)
    console.print(*tables, sep="\n")
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def as_html(tables: Iterable[Table]) -> str:
    """The tables as HTML."""

    def cell(content: object) -> str:
        return html.escape(str(content).replace(".\n", "."))

    parts = []
    for made in tables:
        aligned = [f"<td style='text-align:{column.justify}'>" for column in made.columns]
        head = "".join(f"<th>{cell(column.header)}</th>" for column in made.columns)
        rows = zip(*(list(column.cells) for column in made.columns), strict=True)
        body = [
            "<tr>" + "".join(f"{start}{cell(one)}</td>" for start, one in zip(aligned, row, strict=True)) + "</tr>"
            for row in rows
        ]
        caption = f"<caption style='text-align:left'>{cell(made.title or '')}</caption>"
        parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")
    return "\n".join(parts)


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Table:
    """A table whose numbers have the room that they need, and the names in the first column what that leaves."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    made.caption = f"{note}\n" if note else " "  # an empty line before what follows
    columns = [[row[number] for row in rows] for number in range(len(headings))]
    numbers = [max(map(len, [*heading.split(), *column])) for heading, column in zip(headings, columns, strict=True)][
        1:
    ]
    room = WIDTH - sum(numbers) - len(numbers)  # a space between columns
    names = max(8, min(room, max(map(len, [headings[0], *columns[0]]))))
    made.add_column(headings[0], overflow="fold", width=names)
    for heading, width in zip(headings[1:], numbers, strict=True):
        made.add_column(heading, justify="right", width=width)
    for name, *cells in rows:
        made.add_row(_in_lines(name, names), *cells)
    return made


def _in_lines(name: str, room: int) -> str:
    """A path in lines of at most so many letters, each but the last ending in a dot where that is possible."""
    lines = [""]
    for part in re.findall(r"[^.]*\.?", name):
        if lines[-1].strip("* ") and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def first_table(
    title: str, headings: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], others: str, note: str = ""
) -> Table:
    """A table of the first of many layers.

    Args:
        title: `{}` stands for the start that all names share.
        headings: of the columns.
        rows: a layer's path, and the other cells; those to be shown come first.
        others: what is said of those that are left out: "layers that ...".
        note: below it.
    """
    names, where = short_names([path for path, _ in rows])
    left_out = f"and {len(rows) - ROWS} {others}" if len(rows) > ROWS else ""
    notes = "; ".join(filter(None, (left_out, note)))
    return table(title.format(where), headings, [[names[path], *cells] for path, cells in rows[:ROWS]], notes)


def share(value: float) -> str:
    """A loss as a share, in percent."""
    return shown(value, ".2%" if value < 1 else ".0%")


def shown(value: float, form: str) -> str:
    """A number, or that it is none."""
    return format(value, form) if math.isfinite(value) else NOT_FINITE


def short_names(layers: Sequence[str]) -> tuple[dict[str, str], str]:
    """Short names by path, without the start that all layers in lists of blocks share, and what a title says of it."""
    blocks = [layer for layer in layers if re.search(r"(^|\.)\d+\.", layer)] or layers
    start = os.path.commonprefix(blocks)  # noqa: RUF071 - letter by letter, and then cut at a dot
    shared = start[: start.rfind(".") + 1]
    return {layer: layer.removeprefix(shared) for layer in layers}, f" of {shared[:-1]}" if shared else ""
