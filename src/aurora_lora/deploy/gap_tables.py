"""The tables of a gap report; needs rich."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from rich.table import Table

from ..finite import nan_as_infinite
from .layer_gaps import LayerGap
from .merge_losses import MergeLoss
from .predictions import EndToEndGap
from .tables import first_table, share, short_names, shown, table


def end_to_end_table(forms: Sequence[EndToEndGap], merges: Sequence[MergeLoss], predictions: int) -> Table:
    """One row for each form, and for each merge."""
    names = list(forms[0].metric)
    rows = [
        [
            entry.form,
            "-" if entry.kl is None else shown(entry.kl, ".5f"),
            shown(entry.largest_logit_difference, ".3f"),
            "-" if entry.agreement is None else shown(entry.agreement, ".2%"),
            *(shown(entry.metric[name], ".4f") for name in names),
        ]
        for entry in (*forms, *(merge.end_to_end for merge in merges))
    ]
    headings = ["merge" if merges else "form", "KL from trained", "largest logit diff", "same argmax", *names]
    return table(f"end to end, {predictions:,} predictions", headings, rows)


def layer_table(layers: Sequence[LayerGap], worst: Collection[LayerGap]) -> Table:
    """One row for each layer; the worst are marked."""
    forms = list(dict.fromkeys(entry.form for entry in layers))
    marked = {(e.layer, e.adapter) for e in worst}
    names, where = short_names([entry.layer for entry in layers])
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in layers:
        mark = "*" if (entry.layer, entry.adapter) in marked else " "
        cells = rows.setdefault((entry.layer, entry.adapter), [f"{mark} {names[entry.layer]}"])
        cells += [shown(entry.relative_error, ".1%"), _explained(entry)]
    title = f"layers{where}: relative error, explained variance (* loses most)"
    headings = ["layer", *(heading for form in forms for heading in (f"{form} err", "expl."))]
    return table(title, headings, list(rows.values()))


def _explained(entry: LayerGap) -> str:
    """A dash where the adapter's effect does not vary."""
    nothing_to_explain = math.isfinite(entry.relative_error) and math.isnan(entry.explained_variance)
    return "-" if nothing_to_explain else shown(entry.explained_variance, ".1%")


def merge_table(merges: Sequence[MergeLoss]) -> Table:
    """One row for each of the layers that lose most in some merge, the worst first."""
    lost: dict[str, dict[str, float]] = {}
    for merge in merges:
        for entry in merge.layers:
            lost.setdefault(entry.layer, {})[merge.merge] = entry.relative_error
    order = sorted(lost, key=lambda layer: max(map(nan_as_infinite, lost[layer].values())), reverse=True)
    rows = [(layer, [share(value) for value in lost[layer].values()]) for layer in order]
    headings = ["layer", *(merge.merge for merge in merges)]
    return first_table("layers{}: error, as a share of the adapter's effect", headings, rows, "layers that lose less")
