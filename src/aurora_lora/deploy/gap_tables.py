"""The gap report for a terminal; needs rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from .gap import MergeGap


def end_to_end_table(gap: MergeGap) -> Table:
    """One row for each form."""
    table = Table(title=f"end to end, {gap.predictions:,} predictions", title_justify="left")
    table.add_column("form")
    names = list(gap.end_to_end[0].metric)
    for name in ("KL from trained", "largest logit diff", "same argmax", *names):
        table.add_column(name, justify="right")
    for entry in gap.end_to_end:
        shown = (
            "-" if entry.kl is None else f"{entry.kl:.5f}",
            f"{entry.largest_logit_difference:.3f}",
            "-" if entry.agreement is None else f"{100 * entry.agreement:.2f}%",
            *(f"{entry.metric[name]:.4f}" for name in names),
        )
        table.add_row(entry.form, *shown)
    return table


def layer_table(gap: MergeGap) -> Table:
    """One row for each layer; those that lose most in the last form are marked."""
    forms = list(dict.fromkeys(entry.form for entry in gap.layers))
    marked = {(e.layer, e.adapter) for e in gap.worst(forms[-1])} if forms else set()
    table = Table(title="by layer: relative error, explained variance (* loses most)", title_justify="left")
    table.add_column("layer", overflow="fold")
    for form in forms:
        table.add_column(f"{form} err", justify="right")
        table.add_column("expl.", justify="right")
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in gap.layers:
        cells = rows.setdefault((entry.layer, entry.adapter), [])
        cells += [f"{100 * entry.relative_error:.1f}%", f"{100 * entry.explained_variance:.1f}%"]
    for (layer, adapter), cells in rows.items():
        short = layer.removeprefix("base_model.model.")
        table.add_row(f"{'*' if (layer, adapter) in marked else ' '} {short}", *cells)
    return table
