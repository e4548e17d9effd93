"""The gap report for a terminal; needs rich."""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..files import NOT_FINITE
from ..tuner.peft_names import PEFT_PREFIX
from .layer_gaps import LayerGap
from .merge_losses import MergeLoss
from .predictions import EndToEndGap

WIDTH = 80
"""Of a table of merges, in which a layer's name has what the numbers leave."""
ROWS = 20
"""Of the layers of merges, of which there are as many as there are adapted layers."""


def as_text(tables: Iterable[Table]) -> str:
    """The tables, one below the other, 80 characters wide."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(*tables, sep="\n")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_html(tables: Iterable[Table]) -> str:
    """The tables as HTML."""

    def cell(content: object) -> str:
        return html.escape(Text.from_markup(str(content)).plain)

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
    table = Table(title=f"end to end, {predictions:,} predictions", title_justify="left")
    table.add_column("merge" if merges else "form", min_width=10 if merges else None)
    names = list(forms[0].metric)
    for name in ("KL from trained", "largest logit diff", "same argmax", *names):
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    for entry in (*forms, *(merge.end_to_end for merge in merges)):
        shown = (
            "-" if entry.kl is None else _shown(entry.kl, ".5f"),
            _shown(entry.largest_logit_difference, ".3f"),
            "-" if entry.agreement is None else _shown(entry.agreement, ".2%"),
            *(_shown(entry.metric[name], ".4f") for name in names),
        )
        table.add_row(entry.form, *shown)
    return table


def layer_table(layers: Sequence[LayerGap], worst: Collection[LayerGap]) -> Table:
    """One row for each layer; the worst are marked."""
    forms = list(dict.fromkeys(entry.form for entry in layers))
    marked = {(e.layer, e.adapter) for e in worst}
    shared, where = _shared_path([entry.layer for entry in layers])
    table = Table(
        title=f"layers{where}: relative error, explained variance (* loses most)",
        title_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for form in forms:
        table.add_column(f"{form} err", justify="right")
        table.add_column("expl.", justify="right")
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in layers:
        cells = rows.setdefault((entry.layer, entry.adapter), [])
        cells += [_shown(value, ".1%") for value in (entry.relative_error, entry.explained_variance)]
    for (layer, adapter), cells in rows.items():
        mark = "*" if (layer, adapter) in marked else " "
        table.add_row(f"{mark} {layer.removeprefix(shared)}", *cells)
    return table


def merge_table(merges: Sequence[MergeLoss]) -> Table:
    """One row for each of the layers that lose most in some merge, the worst first."""
    lost: dict[str, dict[str, float]] = {}
    for merge in merges:
        for entry in merge.layers:
            lost.setdefault(entry.layer, {})[merge.merge] = entry.lost
    shared, where = _shared_path(list(lost))
    title = f"layers{where}: error, as a share of the adapter's effect"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    widest = max(len(layer) for layer in lost) - len(shared)
    headings = [merge.merge.replace(" ", "\n") for merge in merges]
    columns = sum(max(7, *map(len, heading.split())) + 1 for heading in headings)
    table.add_column("layer", overflow="fold", width=max(8, min(widest, WIDTH - columns)))
    for heading in headings:
        table.add_column(heading, justify="right")
    order = sorted(lost, key=lambda layer: max(lost[layer].values()), reverse=True)
    for layer in order[:ROWS]:
        table.add_row(layer.removeprefix(shared), *(_shown(value, ".2%") for value in lost[layer].values()))
    if len(order) > ROWS:
        table.caption = f"and {len(order) - ROWS} layers that lose less"
    return table


def _shown(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else NOT_FINITE


def _shared_path(layers: list[str]) -> tuple[str, str]:
    """The path that all layers start with, up to and with a dot, and what a title says of it."""
    start = os.path.commonprefix(layers)  # noqa: RUF071 - letter by letter, and then cut at a dot
    shared = start[: start.rfind(".") + 1]
    name = shared.removeprefix(PEFT_PREFIX).rstrip(".")
    return shared, f" of {name}" if name else ""
