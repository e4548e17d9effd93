"""Figures of what commands measure: the merge gap, sigma, ranks, and trajectories of updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from ...forms import CALIBRATED, DYNAMIC, FORMS, MERGED, STATIC
from ...methods.targets import blocks_and_kinds
from ...text_table import TextTable
from ...train.publish import LEFT, RIGHT, UPDATES, saved_updates
from .figures import FORM_STYLES, GRID, WIDTH, draw_range, legend, new_figure, panels, style
from .tables import finite

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[np.float64]]

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
    entries = [(entry["layer"], entry) for gap in gaps for entry in gap["layers"]]
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


# ---------------------------------------------------------------- sigma


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

    As many columns as there are kinds of modules, along the depth of the model; of deep models, blocks at even
    distances. The first two channels of the rank space are shown.

    Args:
        record: of `aurora sigma`.

    Raises:
        UserError: it has no layers.
    """
    layers = record["layers"]
    if not layers:
        raise UserError("the figure of sigma needs at least one layer")
    places = blocks_and_kinds(layer["layer"] for layer in layers)
    blocks = sorted({block for block, _ in places.values() if block is not None})
    rows = {blocks[int(at)] for at in np.linspace(0, max(len(blocks) - 1, 0), min(MOST_ROWS, len(blocks))).round()}
    of_layers = [(*places[layer["layer"]], layer["channels"]) for layer in layers]
    shown = [(kind if at is None else f"{kind} {at}", own) for at, kind, own in of_layers if at is None or at in rows]
    columns = len({kind for at, kind in places.values() if at is not None}) or math.ceil(math.sqrt(len(shown)))
    width, lines = max(1.7, 0.4 + 0.055 * max(len(title) for title, _ in shown)), -(-len(shown) // columns)
    figure, axes = new_figure(columns, max(WIDTH, width * columns), 1.2 + 1.1 * lines, rows=lines)
    for number, (ax, (title, channels)) in enumerate(zip(axes, shown, strict=False)):
        _draw_sigma(ax, channels)
        ax.set_title(title, fontsize=7.5, loc="left", pad=2)
        if number + columns >= len(shown):
            ax.set_xlabel("z", fontsize=8.5)
        if number % columns == 0:
            ax.set_ylabel("sigma(z)", fontsize=8.5)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    r = len(layers[0]["channels"])
    handles = [*_entries(min(r, MOST_CHANNELS))]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower left", ncols=2, handlelength=2.4)
    what = "the columns of A" if record["train_form"] == STATIC else f"{record['examples']:,} inputs"
    along = {1: "sigma", 2: "sigma along each channel, the other at 0"}
    others = f"sigma along channels 1 and 2 of {r}, the others at 0"
    figure.suptitle(f"{along.get(r, others)}; z of {what}", fontsize=8)
    return figure


def _draw_sigma(ax: Axes, channels: Sequence[Mapping[str, Any]]) -> None:
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


# ---------------------------------------------------------------- ranks


RANKS = "ranks.json"
"""What `aurora rank` measured."""


def _energy(layer: Mapping[str, Any]) -> float:
    return float(sum(value**2 for value in layer["singular_values"]))


def ranks_tables(record: Mapping[str, Any]) -> list[TextTable]:
    """What each kind of module, and each block, has of the squared gradient and gets of the budget."""
    every = sum(map(_energy, record["layers"]))

    def row(name: str, layers: list[Mapping[str, Any]]) -> list[str]:
        largest = max(layer["singular_values"][0] for layer in layers)
        ranks = [layer["rank"] for layer in layers]
        weights = sum(layer["rank"] * layer["direction"] for layer in layers)
        share = 100 * sum(map(_energy, layers)) / every
        return [name, f"{largest:.2g}", f"{share:.1f}", " ".join(map(str, ranks)), f"{weights:,}"]

    headers = ["largest", "% of S^2", "ranks", "weights"]
    most = max(len(layer["singular_values"]) for layer in record["layers"])
    names = record["exhausted"]
    exhausted = (
        f"; {names[0]} and {len(names) - 1} more layers got" if len(names) > 1 else f"; {names[0]} got" if names else ""
    )
    of_kinds: dict[str, list[Mapping[str, Any]]] = {}
    of_blocks: dict[int | None, list[Mapping[str, Any]]] = {}
    for layer in record["layers"]:
        of_kinds.setdefault(layer["kind"], []).append(layer)
        of_blocks.setdefault(layer["block"], []).append(layer)
    return [
        TextTable(
            f"{record['weights']:,} of {record['budget']:,} weights, by kind of module",
            ["kind", *headers],
            [row(kind, layers) for kind, layers in of_kinds.items()],
            "ranks: in the order of the blocks; largest: singular value of the mean gradient; S: those that were found"
            + (f"{exhausted} all {most} directions that are looked for in a layer" if names else ""),
        ),
        TextTable(
            "by block",
            ["block", *headers],
            [row("-" if block is None else str(block), layers) for block, layers in of_blocks.items()],
            f"{100 * record['energy']:.1f}% of the squared gradient that was found lies along the chosen directions",
        ),
    ]


# ---------------------------------------------------------------- trajectories of the weight updates


def trajectories(runs: pd.DataFrame) -> dict[str, Any]:
    """The first two principal components of the updates `dW_e - dW_0` of all runs, forms and epochs e together.

    The update of a run is that of all its adapted layers, as one vector. Two updates `L R` and `L' R'` have the inner
    product `sum (L^T L') * (R R'^T)`, so none is ever multiplied out: the analysis is the exact one of the whole
    matrices, from their (n, n) inner products.

    Args:
        runs: a row of `report.runs.measured` for each run of one model, of which those count that were trained with
            `training.save_updates`.

    Returns:
        `layers`, `explained` (the share of the variance of each component), and for each run and form `label`, `form`,
        `seed`, `epochs`, `points` (epochs, 2) and `norms`, the lengths of the updates.

    Raises:
        UserError: no run has saved updates, the runs adapt other layers, or there is nothing to tell apart.
    """
    from safetensors.numpy import load_file
    from sklearn.decomposition import KernelPCA

    lines: list[dict[str, Any]] = []
    factors: list[
        tuple[dict[str, Array], str]
    ] = []  # of each line, epoch by epoch: the tensors of a file, and the form
    for run in runs.itertuples():
        saved = saved_updates(run.folder / UPDATES)
        epochs = range(int(run.result["epochs"][-1]["epoch"]) + 1)  # it may have stopped early
        if saved and (missing := sorted(set(epochs) - saved.keys())):
            raise UserError(f"{run.folder / UPDATES} has no update of epoch {missing[0]}")
        files = [load_file(path) for path in saved.values()]
        forms = (
            sorted({name.split("/")[0] for name in files[0]}, key=lambda form: form != run.deployed) if files else []
        )
        for form in forms:
            label = f"{run.setting} ({form})" if form != MERGED else run.setting
            lines.append({"label": label, "form": form, "seed": run.seed, "epochs": [*saved]})
            factors += [(file, form) for file in files]
    if not lines:
        raise UserError("the trajectory of the updates needs runs that were trained with training.save_updates=true")
    adapted = [{name.split("/")[1] for name in file if name.startswith(f"{form}/")} for file, form in factors]
    if any(own != adapted[0] for own in adapted):
        raise UserError("the runs with saved updates do not all adapt the same layers: report them apart")
    layers, starts = sorted(adapted[0]), np.cumsum([0, *(len(line["epochs"]) for line in lines)])
    products = np.asarray(sum(_products(factors, layer) for layer in layers))
    from_start = np.eye(len(products))
    for start, stop in pairwise(starts):
        from_start[start:stop, start] -= 1
    products = from_start @ products @ from_start.T
    if len(products) < 3 or not np.trace(products) > 0:
        raise UserError(
            "the trajectory of the updates needs runs of at least two epochs, in which something was learned"
        )
    pca = KernelPCA(n_components=2, kernel="precomputed", eigen_solver="dense")
    points, norms = pca.fit_transform(products), np.sqrt(np.maximum(np.diag(products), 0))
    for line, (start, stop) in zip(lines, pairwise(starts), strict=True):
        line |= {"points": points[start:stop].round(6).tolist(), "norms": norms[start:stop].round(6).tolist()}
    total = np.trace(products) - products.sum() / len(products)  # n times the variance
    return {"schema": 1, "layers": layers, "explained": (pca.eigenvalues_ / total).round(6).tolist(), "runs": lines}


def _products(factors: Sequence[tuple[Mapping[str, Array], str]], layer: str) -> Array:
    """The (n, n) inner products of a layer's updates, over all lines and epochs."""
    lefts = [file[f"{form}/{layer}/{LEFT}"].astype(np.float64) for file, form in factors]
    rights = [file[f"{form}/{layer}/{RIGHT}"].astype(np.float64) for file, form in factors]
    left, right = np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)
    blocks = (left.T @ left) * (right @ right.T)
    starts = np.cumsum([0, *(len(one) for one in rights)])[:-1]
    products: Array = np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1)
    return products


def trajectories_figure(record: Mapping[str, Any]) -> Figure:
    """The first two components, a line for each run from epoch 0 (a ring) on; the axes have one scale.

    Args:
        record: of `trajectories`.
    """
    names = list(dict.fromkeys(run["label"] for run in record["runs"]))
    figure, (ax,) = panels(names, 3.9)
    shown: set[str] = set()
    for run in record["runs"]:
        x, y = zip(*run["points"], strict=True)
        label = {} if run["label"] in shown else {"label": run["label"]}
        ax.plot(x, y, markersize=4, linewidth=1, **label, **style(names.index(run["label"]), run["label"]))
        ax.plot(x[:1], y[:1], marker="o", markersize=9, color="#000000", fillstyle="none", linestyle="none")
        shown.add(run["label"])
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(axis="x", **GRID)
    for axis, name, share in (
        (ax.xaxis, "first", record["explained"][0]),
        (ax.yaxis, "second", record["explained"][1]),
    ):
        axis.set_label_text(f"{name} component, {100 * share:.0f}% of the variance", fontsize=9)
    last = max(run["epochs"][-1] for run in record["runs"])
    title = f"updates of {len(record['layers'])} matrices, epochs 0 (ring) to {last}"
    ax.set_title(title, fontsize=8, loc="left")
    legend(figure, ax)
    return figure
