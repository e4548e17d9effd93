"""The gap report for a terminal; needs rich."""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..files import NOT_FINITE
from ..finite import nan_as_infinite
from ..text_table import column_widths
from .layer_gaps import LayerGap
from .merge_losses import MergeLoss
from .predictions import EndToEndGap

WIDTH = 80
"""Of a table."""
ROWS = 20
"""Of the layers of merges, of which there are as many as there are adapted layers."""


def as_text(tables: Iterable[Table]) -> str:
    """The tables, one below the other, 80 characters wide."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(*tables, sep="\n")
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def as_html(tables: Iterable[Table]) -> str:
    """The tables as HTML."""

    def cell(content: object) -> str:
        return html.escape(Text.from_markup(str(content)).plain.replace(".\n", "."))

    parts = []
    for table in tables:
        aligned = [f"<td style='text-align:{column.justify}'>" for column in table.columns]
        head = "".join(f"<th>{cell(column.header)}</th>" for column in table.columns)
        rows = zip(*(list(column.cells) for column in table.columns), strict=True)
        body = [
            "<tr>" + "".join(f"{start}{cell(one)}</td>" for start, one in zip(aligned, row, strict=True)) + "</tr>"
            for row in rows
        ]
        caption = f"<caption style='text-align:left'>{cell(table.title or '')}</caption>"
        parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")
    return "\n".join(parts)


def end_to_end_table(forms: Sequence[EndToEndGap], merges: Sequence[MergeLoss], predictions: int) -> Table:
    """One row for each form, and for each merge."""
    names = list(forms[0].metric)
    rows = [
        [
            entry.form,
            "-" if entry.kl is None else _shown(entry.kl, ".5f"),
            _shown(entry.largest_logit_difference, ".3f"),
            "-" if entry.agreement is None else _shown(entry.agreement, ".2%"),
            *(_shown(entry.metric[name], ".4f") for name in names),
        ]
        for entry in (*forms, *(merge.end_to_end for merge in merges))
    ]
    headings = ["merge" if merges else "form", "KL from trained", "largest logit diff", "same argmax", *names]
    return _table(f"end to end, {predictions:,} predictions", headings, rows)


def layer_table(layers: Sequence[LayerGap], worst: Collection[LayerGap]) -> Table:
    """One row for each layer; the worst are marked."""
    forms = list(dict.fromkeys(entry.form for entry in layers))
    marked = {(e.layer, e.adapter) for e in worst}
    names, where = _short_names([entry.layer for entry in layers])
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in layers:
        mark = "*" if (entry.layer, entry.adapter) in marked else " "
        cells = rows.setdefault((entry.layer, entry.adapter), [f"{mark} {names[entry.layer]}"])
        cells += [_shown(entry.relative_error, ".1%"), _explained(entry)]
    title = f"layers{where}: relative error, explained variance (* loses most)"
    headings = ["layer", *(heading for form in forms for heading in (f"{form} err", "expl."))]
    return _table(title, headings, list(rows.values()))


def _explained(entry: LayerGap) -> str:
    """A dash where the adapter's effect does not vary."""
    nothing_to_explain = math.isfinite(entry.relative_error) and math.isnan(entry.explained_variance)
    return "-" if nothing_to_explain else _shown(entry.explained_variance, ".1%")


def merge_table(merges: Sequence[MergeLoss]) -> Table:
    """One row for each of the layers that lose most in some merge, the worst first."""
    lost: dict[str, dict[str, float]] = {}
    for merge in merges:
        for entry in merge.layers:
            lost.setdefault(entry.layer, {})[merge.merge] = entry.lost
    names, where = _short_names(list(lost))
    order = sorted(lost, key=lambda layer: max(map(nan_as_infinite, lost[layer].values())), reverse=True)
    rows = [
        [names[layer], *(_shown(value, ".2%" if value < 1 else ".0%") for value in lost[layer].values())]
        for layer in order[:ROWS]
    ]
    title = f"layers{where}: error, as a share of the adapter's effect"
    table = _table(title, ["layer", *(merge.merge for merge in merges)], rows)
    if len(order) > ROWS:
        table.caption = f"and {len(order) - ROWS} layers that lose less\n"
    return table


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose numbers have the room that they need, and the names in the first column what that leaves."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.caption = " "  # an empty line before what follows
    room = WIDTH - len(headings) + 1  # a space between columns
    names, *numbers = column_widths([*zip(headings, *rows, strict=True)], room)
    names = max(8, min(names, room - sum(numbers)))
    table.add_column(headings[0], overflow="fold", width=names)
    for heading, width in zip(headings[1:], numbers, strict=True):
        table.add_column(heading, justify="right", width=width)
    for name, *cells in rows:
        table.add_row(_in_lines(name, names), *cells)
    return table


def _in_lines(name: str, room: int) -> str:
    """A path in lines of at most so many letters, each but the last ending in a dot where that is possible."""
    lines = [""]
    for part in re.findall(r"[^.]*\.?", name):
        if lines[-1].strip("* ") and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _shown(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else NOT_FINITE


def _short_names(layers: Sequence[str]) -> tuple[dict[str, str], str]:
    """By path, what is left without the start that all layers in lists of blocks share, and what a title says of it."""
    blocks = [layer for layer in layers if re.search(r"(^|\.)\d+\.", layer)] or layers
    start = os.path.commonprefix(blocks)  # noqa: RUF071 - letter by letter, and then cut at a dot
    shared = start[: start.rfind(".") + 1]
    return {layer: layer.removeprefix(shared) for layer in layers}, f" of {shared[:-1]}" if shared else ""
