"""The results of `calibrate`, `merge_gap`, `merge_quantized` and `probe`: plain values, and tables that need rich."""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..files import NOT_FINITE, finite_or_none
from ..values import is_int, nan_as_infinite, require

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")

WIDTH = 80
"""The width of a table, in columns of a terminal."""
ROWS = 20
"""The most layers of a table whose first layers matter most."""


class Report:
    """What a computation has found."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: None stands for NaN and infinity, which JSON does not have."""
        found: dict[str, Any] = finite_or_none(asdict(cast("Any", self)))
        return found

    def tables(self) -> tuple[Table, ...]:
        """The tables for a terminal. Needs rich."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The tables, 80 characters wide; all fields, where rich is not installed."""
        try:
            return as_text(self.tables())
        except ModuleNotFoundError:
            return repr(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<pre>{html.escape(str(self))}</pre>"


def worst_of(entries: Iterable[T], loss: Callable[[T], float], n: int) -> tuple[T, ...]:
    """The n entries that lose most, the worst first; a loss that is not a number is with the worst.

    Raises:
        ValueError: n is no whole number of at least 1.
    """
    require(is_int(n, 1), "n", n, "a whole number of at least 1")
    return tuple(sorted(entries, key=lambda entry: nan_as_infinite(loss(entry)), reverse=True)[: int(n)])


def as_text(tables: Iterable[Table]) -> str:
    """The tables, one below the other, 80 characters wide."""
    from rich.console import Console

    text = io.StringIO()
    plain: dict[str, Any] = {"markup": False, "emoji": False, "color_system": None}  # names of layers, as they are
    console = Console(file=text, width=WIDTH, force_terminal=False, force_jupyter=False, **plain)
    console.print(*tables, sep="\n")
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Table:
    """A table whose numbers have the room that they need, and the names in the first column what that leaves."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    made.caption = f"{note}\n" if note else " "  # an empty line before what follows
    first, *columns = zip(headings, *rows, strict=True)
    numbers = [max(map(len, [*heading.split(), *cells])) for heading, *cells in columns]
    room = WIDTH - sum(numbers) - len(numbers)  # a space between columns
    made.add_column(headings[0], overflow="fold", width=max(8, min(room, max(map(len, first)))))
    for heading, width in zip(headings[1:], numbers, strict=True):
        made.add_column(heading, justify="right", width=width)
    for row in rows:
        made.add_row(*row)
    return made


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


def shown(value: float | None, form: str) -> str:
    """A number, that it is none, or a dash where there is nothing."""
    return "-" if value is None else format(value, form) if math.isfinite(value) else NOT_FINITE


def short_names(layers: Sequence[str]) -> tuple[dict[str, str], str]:
    """Short names by path, without the start that all layers in lists of blocks share, and what a title says of it."""
    blocks = [layer for layer in layers if re.search(r"(^|\.)\d+\.", layer)] or layers
    start = os.path.commonprefix(blocks)  # noqa: RUF071 - letter by letter, and then cut at a dot
    shared = start[: start.rfind(".") + 1]
    return {layer: layer.removeprefix(shared) for layer in layers}, f" of {shared[:-1]}" if shared else ""
