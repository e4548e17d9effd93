"""Where a budget of weights goes: the gradient's spectrum and the ranks, by layer and kind of module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...text_table import TextTable
from .figures import colour, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = "ranks.json"
"""What `aurora rank` measured."""


def _grid(record: Mapping[str, Any]) -> tuple[list[str], list[int | None], dict[tuple[int | None, str], Any]]:
    """The kinds of module, the blocks, and the layer at each place."""
    at = {(layer["block"], layer["kind"]): layer for layer in record["layers"]}
    return list(dict.fromkeys(kind for _, kind in at)), list(dict.fromkeys(block for block, _ in at)), at


def _energy(layer: Mapping[str, Any]) -> float:
    return float(sum(value**2 for value in layer["singular_values"]))


def ranks_tables(record: Mapping[str, Any]) -> list[TextTable]:
    """What each kind of module, and each block, has of the squared gradient and gets of the budget."""
    kinds, blocks, at = _grid(record)
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
    of_kinds = [(kind, [at[block, kind] for block in blocks if (block, kind) in at]) for kind in kinds]
    of_blocks = [(block, [at[block, kind] for kind in kinds if (block, kind) in at]) for block in blocks]
    return [
        TextTable(
            f"{record['weights']:,} of {record['budget']:,} weights, by kind of module",
            ["kind", *headers],
            [row(kind, layers) for kind, layers in of_kinds],
            "ranks: in the order of the blocks; largest: singular value of the mean gradient; S: those that were found"
            + (f"{exhausted} all {most} directions that are looked for in a layer" if names else ""),
        ),
        TextTable(
            "by block",
            ["block", *headers],
            [row("-" if block is None else str(block), layers) for block, layers in of_blocks],
            f"{100 * record['energy']:.1f}% of the squared gradient that was found lies along the chosen directions",
        ),
    ]


def ranks_figure(record: Mapping[str, Any]) -> Figure:
    """The ranks by block and kind of module, over what the leading direction is worth; and the list of all
    directions by worth, with what the budget takes.

    Args:
        record: of `aurora rank`.
    """
    import numpy as np

    kinds, blocks, at = _grid(record)
    figure, axes = new_figure(2, 8.4, 1.4 + 0.24 * max(6, len(blocks)))
    worth = np.full((len(blocks), len(kinds)), np.nan)
    for (block, kind), layer in at.items():
        worth[blocks.index(block), kinds.index(kind)] = layer["singular_values"][0] ** 2 / layer["direction"]
    ax = axes[0]
    ax.grid(False)
    shown = ax.imshow(np.log10(np.maximum(worth, np.nanmax(worth) * 1e-6)), aspect="auto", cmap="Blues")
    for (block, kind), layer in at.items():
        row, column = blocks.index(block), kinds.index(kind)
        red, green, blue, _ = shown.to_rgba(shown.get_array()[row, column])  # type: ignore[index]
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        text = str(layer["rank"]) if layer["rank"] else "·"
        ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    ax.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right", fontsize=7)
    ax.set_yticks(range(len(blocks)), ["none" if block is None else str(block) for block in blocks], fontsize=7)
    ax.set_ylabel("block", fontsize=8.5)
    ax.set_title("rank of each layer (·: none)", fontsize=8, loc="left")
    bar = figure.colorbar(shown, ax=ax, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("log10 of the\nleading worth", fontsize=7, loc="left")
    _list(axes[1], record)
    return figure


def _list(ax: Any, record: Mapping[str, Any]) -> None:
    """All directions, the most worth first, against the weights that they take."""
    directions = sorted(
        (
            (value**2 / layer["direction"], layer["direction"], place < layer["rank"])
            for layer in record["layers"]
            for place, value in enumerate(layer["singular_values"])
            if value > 0
        ),
        reverse=True,
    )
    for taken, style in ((True, {"color": colour(record["method"]["name"])}), (False, {"color": "#AAAAAA"})):
        places, total = [], 0
        for value, weights, chosen in directions:
            total += weights
            if chosen == taken:
                places.append((total, value))
        if places:
            label = f"taken ({len(places)})" if taken else "left"
            ax.plot(*zip(*places, strict=True), ".", markersize=3, label=label, **style)
    ax.axvline(record["budget"], color="#000000", linewidth=1, linestyle="--", label="budget")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("weights of A and B", fontsize=8.5)
    ax.set_ylabel("worth: S² / (d_in + d_out)", fontsize=8.5)
    ax.set_ylim(bottom=directions[0][0] * 1e-9)
    ax.tick_params(labelsize=7)
    ax.legend(frameon=False, fontsize=7.5)
