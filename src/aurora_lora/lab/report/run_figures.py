"""Figures of a set of runs: score against parameters (Figure 1) and against rank (Figure 5), and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...tasks.metrics import metric_named
from .figures import new_figure
from .groups import Group, chosen, half_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart under the common colour blindnesses, without the yellow that print loses.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
LINES = ("-", "--", "-.", ":")
MOST_CURVES = len(COLOURS)
WIDTH = 4.2
"""Inches: a page on a phone shrinks it little."""


def style(place: int) -> dict[str, Any]:
    """Colour, marker and line of the series at a place: none of the first 91 look alike, in grey neither."""
    filled = {} if place < len(COLOURS) else {"markerfacecolor": "white"}
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
        **filled,
    }


def score_figure(found: Sequence[Group], metric: str) -> Figure:
    """Score of each setting's deployed form against its trained parameters, as in the paper's Figure 1.

    A method at several ranks is one line; bars are 95% intervals over the seeds.
    """
    by_line = chosen(found)
    figure, (ax,) = panels(_names(by_line), 3.0)
    places = _side_by_side([(line, group.params) for line, several in by_line.items() for group in several])
    for place, (line, several) in enumerate(by_line.items()):
        points = [(places[line, group.params], group.scores(group.deployed, metric)) for group in several]
        _errorbar(ax, points, metric, several[0].with_form(line), style(place))
    _parameter_axis(ax, [group.params for group in found])
    ax.set_xlabel("trained parameters outside the head")
    ax.set_ylabel(metric_named(metric).axis)
    legend(figure, ax)
    return figure


def rank_figure(found: Sequence[Group], metric: str) -> Figure:
    """Score of each method's deployed form against its rank, as in the paper's Figure 5, a panel for each test set.

    Bars are 95% intervals over the seeds.

    Raises:
        UserError: no method was run at two ranks.
    """
    by_line = {
        line: ranked
        for line, several in chosen(found).items()
        if len(ranked := [group for group in several if group.rank is not None]) > 1
    }
    if not by_line:
        raise UserError("score against rank needs runs of one method at two ranks at least")
    sets = next(iter(by_line.values()))[0].test_sets
    columns, rows = (2, (len(sets) + 1) // 2) if sets else (1, 1)
    figure, axes = panels(_names(by_line), 2.2 * rows if sets else 3.0, rows, columns)
    ranks = sorted({group.rank for several in by_line.values() for group in several if group.rank is not None})
    shown: Sequence[str | None] = sets or [None]
    for ax, test_set in zip(axes, shown, strict=False):
        for place, (line, several) in enumerate(by_line.items()):
            several = sorted(several, key=lambda group: group.rank or 0)
            beside = 2 ** (0.03 * (place - (len(by_line) - 1) / 2))  # bars do not hide each other
            points = [(beside * (group.rank or 0), group.scores(group.deployed, metric, test_set)) for group in several]
            _errorbar(ax, points, metric, several[0].with_form(line), style(place))
        ax.set_xscale("log", base=2)
        ax.set_xticks(ranks, [str(rank) for rank in ranks])
        ax.minorticks_off()
        ax.set_title(test_set or "", fontsize=9, loc="left")
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("rank r")
    for ax in axes[::columns]:
        ax.set_ylabel(metric_named(metric).axis)
    for ax in axes[len(sets) or 1 :]:
        ax.set_axis_off()
    legend(figure, axes[0])
    return figure


def curves_figure(found: Sequence[Group], metric: str) -> Figure:
    """Training loss and validation score by epoch: the mean over the seeds, with their range.

    The score is that by which the best epoch is chosen. Of many settings, those that score best on validation data are
    shown.

    Raises:
        UserError: the results have no epochs, or one each.
    """
    metric = found[0].selected_by
    lengths = [len(_curve(group, lambda entry: entry["validation"].get(metric))) for group in found]
    curves = [group for group, length in zip(found, lengths, strict=True) if length]
    if not curves:
        raise UserError("learning curves need results with epochs; a study.json without its runs has none")
    if max(lengths) == 1:
        raise UserError("learning curves need runs that were evaluated more than once")
    curves.sort(key=lambda group: -group.validation)
    scale = metric_named(metric).scale
    names = [group.with_form(group.label) for group in curves[:MOST_CURVES]]
    figure, axes = panels(names, 4.8, rows=2)
    for place, (name, group) in enumerate(zip(names, curves, strict=False)):
        for ax, values, factor in (
            (axes[0], lambda entry: entry.get("train_loss"), 1),
            (axes[1], lambda entry: entry["validation"].get(metric), scale),
        ):
            points = _curve(group, values)
            epochs = list(points)
            means = [factor * statistics.fmean(points[epoch]) for epoch in epochs]
            ax.plot(epochs, means, label=name, markersize=4, linewidth=1.2, **style(place))
            if len(group.runs) > 1:
                low, high = ([factor * f(points[epoch]) for epoch in epochs] for f in (min, max))
                ax.fill_between(epochs, low, high, color=style(place)["color"], alpha=0.12, linewidth=0)
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel(f"validation {metric_named(metric).axis}")
    axes[1].set_xlabel("epoch")
    for ax in axes:
        ax.locator_params(axis="x", integer=True)
    if len(curves) > MOST_CURVES:
        axes[0].set_title(
            f"the {MOST_CURVES} best of {len(curves)} settings on validation data", fontsize=8, loc="left"
        )
    legend(figure, axes[0])
    return figure


def _curve(group: Group, value: Any) -> dict[float, list[float]]:
    """By epoch, the values of the seeds that are numbers."""
    points: dict[float, list[float]] = {}
    for run in group.runs:
        for entry in run["epochs"]:
            if (found := value(entry)) is not None:
                points.setdefault(entry["epoch"], []).append(found)
    return dict(sorted(points.items()))


def _names(by_line: Mapping[str, Sequence[Group]]) -> list[str]:
    return [several[0].with_form(line) for line, several in by_line.items()]


def panels(names: Sequence[str], height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels of a height in inches all together, and room for a legend of these names."""
    return new_figure(columns, WIDTH, height + 0.17 * -(-len(names) // _columns(names)), rows=rows)


def _columns(names: Sequence[str]) -> int:
    """Two if they fit into the width."""
    half = (len(names) + 1) // 2
    longest = [max(map(len, column), default=0) for column in (names[:half], names[half:])]
    return 2 if 0.058 * sum(longest) + 0.95 < WIDTH else 1  # inches of a letter, and of what stands before the names


def _side_by_side(counts: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """Where to draw each: settings within 5% of each other in size are set side by side, over a third of a decade."""
    places: dict[tuple[str, int], float] = {}
    together: list[tuple[str, int]] = []
    for one in [*sorted(counts, key=lambda one: one[1]), None]:
        if one is None or (together and one[1] > 1.05 * together[-1][1]):
            for place, key in enumerate(together):
                places[key] = key[1] * 10 ** (min(0.025, 0.33 / len(together)) * (place - (len(together) - 1) / 2))
            together = []
        if one is not None:
            together.append(one)
    return places


def _parameter_axis(ax: Axes, counts: Sequence[int]) -> None:
    """Logarithmic; with a place for 0 if need be, which a linear probe has."""
    if min(counts) > 0:
        ax.set_xscale("log")
        low, high = min(counts) / 2, 2 * max(counts)
        if high < 80 * low:  # too few powers of ten to read it by
            ticks = [step * 10**power for power in range(math.ceil(math.log10(high))) for step in (1, 2, 5)]
            ax.set_xlim(low, high)
            ax.set_xticks([tick for tick in ticks if low < tick < high])
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.minorticks_off()
        return
    least = math.floor(math.log10(min((count for count in counts if count), default=1)))
    most = math.ceil(math.log10(max(*counts, 10)))
    ax.set_xscale("symlog", linthresh=10**least)
    ax.set_xticks([0, *(10**power for power in range(least, most + 1))])
    ax.set_xlim(left=-(10**least) / 3, right=1.5 * max(*counts, 10))


def _errorbar(
    ax: Axes, points: Sequence[tuple[float, Sequence[float]]], metric: str, label: str, look: Mapping[str, Any]
) -> None:
    scale = metric_named(metric).scale
    points = [(x, values) for x, values in points if values]
    means = [scale * statistics.fmean(values) for _, values in points]
    bars = [scale * half_interval(values) for _, values in points]
    x = [x for x, _ in points]
    ax.errorbar(x, means, yerr=bars, label=label, capsize=2.5, markersize=5, linewidth=1.2, elinewidth=0.8, **look)


def legend(figure: Figure, ax: Axes) -> None:
    """One legend for all panels, below them."""
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        frameon=False,
        fontsize=8,
        loc="outside lower left",
        ncols=_columns(names),
        handlelength=2.4,
        columnspacing=1.0,
    )
