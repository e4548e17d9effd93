"""The learned activation of each layer, before and after training, over the histogram of its inputs z."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...forms import CALIBRATED, DYNAMIC, STATIC
from ...methods.targets import blocks_and_kinds
from .figures import FORM_STYLES, new_figure
from .run_figures import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMA = "sigma.json"
"""The file in the folder of a run with what `aurora sigma` measured."""
MOST_ROWS, MOST_CHANNELS = 8, 2
BEFORE: dict[str, Any] = {"color": "#777777", "linestyle": ":", "linewidth": 1.2}
AFTER: tuple[dict[str, Any], ...] = (
    {"color": FORM_STYLES[CALIBRATED]["color"], "linestyle": "-", "linewidth": 1.4},
    {"color": FORM_STYLES[DYNAMIC]["color"], "linestyle": "--", "linewidth": 1.4},
)
BARS: tuple[dict[str, Any], ...] = (
    {"color": FORM_STYLES[CALIBRATED]["color"], "linestyle": "-", "alpha": 0.25, "fill": True},
    {"color": FORM_STYLES[DYNAMIC]["color"], "linestyle": "--", "alpha": 0.6, "fill": False},
)


def sigma_figure(record: Mapping[str, Any]) -> Figure:
    """A panel for each adapted layer: sigma_i(z_i), the other channels at 0, before and after the training.

    A column for each kind of module, along the depth of the model; of deep models, layers at even distances. Layers in
    no list of blocks come last, side by side. The first two channels of the rank space are shown.

    Args:
        record: of `aurora sigma`.

    Raises:
        UserError: it has no layers.
    """
    layers = record["layers"]
    if not layers:
        raise UserError("the figure of sigma needs at least one layer")
    grid = _grid(layers)
    columns = max(map(len, grid))
    width = max(1.7, 0.4 + 0.055 * max(len(title) for row in grid for title, _ in filter(None, row)))
    figure, axes = new_figure(columns, max(WIDTH, width * columns), 1.2 + 1.1 * len(grid), rows=len(grid))
    for number, row in enumerate(grid):
        for column in range(columns):
            ax, found = axes[number * columns + column], row[column] if column < len(row) else None
            if found is None:
                ax.set_axis_off()
                continue
            title, channels = found
            _panel(ax, channels)
            ax.set_title(title, fontsize=7.5, loc="left", pad=2)
            if not any(column < len(later) and later[column] for later in grid[number + 1 :]):
                ax.set_xlabel("z", fontsize=8.5)
            if not any(row[:column]):
                ax.set_ylabel("sigma(z)", fontsize=8.5)
    r = len(layers[0]["channels"])
    handles = [*_entries(min(r, MOST_CHANNELS))]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower left", ncols=2, handlelength=2.4)
    what = "the columns of A" if record["train_form"] == STATIC else f"{record['examples']:,} inputs"
    along = {1: "sigma", 2: "sigma along each channel, the other at 0"}
    others = f"sigma along channels 1 and 2 of {r}, the others at 0"
    figure.suptitle(f"{along.get(r, others)}; z of {what}", fontsize=8)
    return figure


_Panel = tuple[str, Sequence[Mapping[str, Any]]]
"""Title and channels."""


def _grid(layers: Sequence[Mapping[str, Any]]) -> list[list[_Panel | None]]:
    """The rows of panels, with None where a block lacks a layer."""
    channels = {layer["layer"]: layer["channels"] for layer in layers}
    places = blocks_and_kinds(channels)
    at = {place: channels[path] for path, place in places.items()}
    numbers = sorted({block for block, _ in at if block is not None})
    kinds = list(dict.fromkeys(kind for block, kind in at if block is not None))
    shown = [numbers[place] for place in _spread(len(numbers), MOST_ROWS)]
    rows: list[list[_Panel | None]] = [
        [(f"{kind} {block}", at[block, kind]) if (block, kind) in at else None for kind in kinds] for block in shown
    ]
    others = [(kind, found) for (block, kind), found in at.items() if block is None]
    columns = len(kinds) or math.ceil(math.sqrt(len(others)))
    rows += [[*others[start : start + columns]] for start in range(0, len(others), columns)]
    return rows


def _panel(ax: Axes, channels: Sequence[Mapping[str, Any]]) -> None:
    bars = ax.twinx()
    bars.set_axis_off()
    ax.set_zorder(bars.get_zorder() + 1)
    ax.patch.set_visible(False)
    for channel, after, bar in zip(channels, AFTER, BARS, strict=False):
        bars.stairs(channel["counts"], channel["edges"], linewidth=0.7, **bar)
        ax.plot(channel["z"], channel["before"], **BEFORE)
        ax.plot(channel["z"], channel["after"], **after)
    bars.set_ylim(0, 1.6 * max(max(channel["counts"]) for channel in channels[:MOST_CHANNELS]))
    ax.tick_params(labelsize=7)
    ax.locator_params(nbins=4)


def _entries(channels: int) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [Line2D([], [], label=f"channel {n + 1}, trained", **AFTER[n]) for n in range(channels)]
    patches = [Patch(label=f"histogram of z_{n + 1}", linewidth=0.7, **BARS[n]) for n in range(channels)]
    return [*lines, Line2D([], [], label="at the start", **BEFORE), *patches]


def _spread(count: int, most: int) -> list[int]:
    """Up to so many places, first and last among them, at even distances."""
    if count <= most:
        return list(range(count))
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})
