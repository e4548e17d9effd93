"""What merges lose, drawn: end to end, and in each layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .figures import GREY, GRID, new_figure
from .tables import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def merges_figure(*gaps: Mapping[str, Any]) -> Figure:
    """KL divergence of each merge from the unmerged model, and the loss of each layer with the median over them.

    Args:
        gaps: `MergeGap.to_dict()`, with merges, of runs that differ in their seed. What is not above 0 cannot be drawn
            on the logarithmic scale, and is left out.
    """
    names = list(dict.fromkeys(merge["merge"] for gap in gaps for merge in gap["merges"]))
    if not names:
        raise UserError("the figure of merges needs a merge")
    ends = _by_merge(gaps, lambda merge: [merge["end_to_end"]["kl"]])
    layers = _by_merge(gaps, lambda merge: [_lost(entry) for entry in merge["layers"]])
    figure, axes = new_figure(2, 7.2, 2.0 + 0.25 * len(names))
    panels = (
        (ends, "KL from the unmerged model, nats"),
        (layers, "error, as a share of the adapter's effect"),
    )
    for ax, (values, label) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            if found := values.get(name):
                ax.plot(found, [place] * len(found), "o", color=GREY, alpha=0.5, markersize=4)
                ax.plot([statistics.median(found)], [place], "|", color="#000000", markersize=12)
        if drawn := [value for found in values.values() for value in found]:
            ax.set_xscale("log")
            low, high = math.floor(math.log10(min(drawn))), math.ceil(math.log10(max(drawn)))
            ax.set_xlim(10.0**low, 10.0 ** max(high, low + 1))  # decades: labels between them would hide each other
            ax.xaxis.set_minor_formatter("")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(label, fontsize=9)
        ax.grid(axis="x", **GRID)
    axes[0].set_title("end to end", fontsize=9, loc="left")
    axes[1].set_title("each layer; the line is the median", fontsize=9, loc="left")
    return figure


def _lost(entry: Mapping[str, Any]) -> float | None:
    found: float | None = entry["relative_error"] if "relative_error" in entry else entry["lost"]  # as it was called
    return found


def _by_merge(gaps: tuple[Mapping[str, Any], ...], values: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for merge in (merge for gap in gaps for merge in gap["merges"]):
        found.setdefault(merge["merge"], []).extend(value for value in finite(values(merge)) if value > 0)
    return found
