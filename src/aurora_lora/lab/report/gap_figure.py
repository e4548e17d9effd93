"""What a merge loses, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...forms import FORMS
from ...methods.targets import blocks_and_kinds
from ...tuner.peft_names import PEFT_PREFIX
from .figures import FORM_STYLES, draw_range, legend, new_figure
from .tables import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = "gap.json"
"""The file in the folder of a run with what `aurora gap` measured."""
MOST_COLUMNS = 3
"""Panels beside each other."""


def gap_figure(*gaps: Mapping[str, Any]) -> Figure:
    """The relative error of each form, a panel for each kind of module, along the depth of the model.

    Args:
        gaps: `MergeGap.to_dict()` of runs that differ in their seed: the mean is drawn, bars are the range. What is not
            finite is a gap in the line.
    """
    # files of earlier versions have PEFT's prefix
    entries = [(entry["layer"].removeprefix(PEFT_PREFIX), entry) for gap in gaps for entry in gap["layers"]]
    places = blocks_and_kinds(layer for layer, _ in entries)
    kinds: dict[str, dict[str, dict[int | None, list[float]]]] = {}
    for layer, entry in entries:
        block, kind = places[layer]
        blocks = kinds.setdefault(kind, {}).setdefault(entry["form"], {})
        blocks.setdefault(block, []).extend(100 * value for value in finite([entry["relative_error"]]))
    if not kinds:
        raise UserError("the gap figure needs the gap of at least one layer")
    columns = min(len(kinds), MOST_COLUMNS)
    rows = -(-len(kinds) // columns)
    figure, axes = new_figure(columns, max(3.6, 2.4 * columns), 0.5 + 2.4 * rows, rows)
    every = [values for forms in kinds.values() for blocks in forms.values() for values in blocks.values()]
    top = max((value for values in every for value in values), default=0.0)
    for ax, (kind, forms) in zip(axes, kinds.items(), strict=False):
        for form, blocks in forms.items():
            along = sorted((block or 0, values) for block, values in blocks.items())
            x, drawn = [block for block, _ in along], [values for _, values in along]
            draw_range(ax, x, drawn, label=FORMS[form].label, **FORM_STYLES[form])
        ax.set_title(kind, fontsize=9, loc="left")
        if any(None in blocks for blocks in forms.values()):
            ax.set_xticks([])  # it is in no list of layers
        else:
            ax.set_xlabel("layer")
            ax.locator_params(axis="x", integer=True)
        ax.set_ylim(0, 1.05 * top if top > 0 else 1)
    for ax in axes[::columns]:
        ax.set_ylabel("error of the adapter's output, %", fontsize=9 if rows == 1 else 8)
    for ax in axes[len(kinds) :]:
        ax.set_axis_off()
    legend(figure, axes[0])
    return figure
