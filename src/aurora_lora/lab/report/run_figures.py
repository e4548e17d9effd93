"""Figures of a set of runs: scores (Figure 1), score against rank (Figure 5), and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...data.metrics import metric_named
from ...errors import UserError
from .figures import GRID, LETTER, colour, fitted, legend, legend_columns, new_figure, style
from .groups import Group, chosen, half_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 7
LEAST_EPOCHS = 3
"""Evaluations that make a learning curve."""
WIDTH = 4.6
"""Inches: a page on a phone shrinks it little."""
LEAST_PLOT = 2.4
"""Inches: of what is plotted beside names."""


def score_figure(found: Sequence[Group], metric: str) -> Figure:
    """Score of each setting's deployed form, a row each, the best first, with its trained parameters at the right.

    Bars are 95% intervals over the seeds.
    """
    known = metric_named(metric)
    rows = [
        (group, scores)
        for several in chosen(found).values()
        for group in several
        if (scores := group.scores(group.deployed, metric))
    ]
    if not rows:
        raise UserError(f"no run has a finite {known.axis}")
    rows.sort(key=lambda row: -known.sign * statistics.fmean(row[1]))
    names = [group.with_form(group.label) for group, _ in rows]
    beside = max(map(len, names)) + max(len(group.counted) for group, _ in rows)
    figure, (ax,) = new_figure(1, max(WIDTH, LEAST_PLOT + LETTER * beside), 1.5 + 0.2 * len(rows))
    for place, (group, scores) in enumerate(rows):
        look: dict[str, Any] = {"color": colour(group.method, group.deployed), "marker": "o"}
        mean, bars = known.scale * statistics.fmean(scores), _bars([scores], known.scale)
        ax.errorbar([mean], [place], xerr=bars, capsize=2.5, markersize=4.5, elinewidth=1, linestyle="none", **look)
        ax.text(1.02, place, group.counted, transform=ax.get_yaxis_transform(), fontsize=7.5, va="center")
    ax.text(1.02, 1.02, "trained\nparameters", transform=ax.transAxes, fontsize=7.5)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x", **GRID)
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel(known.axis, fontsize=9)
    return figure


def _best_of_each_rank(several: Sequence[Group]) -> list[Group]:
    """The best setting of each rank of a line, lowest rank first: of several alphas the best one on validation data, of
    those with the most seeds."""
    best: dict[int, Group] = {}
    for group in several:
        if group.rank is not None and (group.rank not in best or group.standing > best[group.rank].standing):
            best[group.rank] = group
    return [best[rank] for rank in sorted(best)]


def rank_figure(found: Sequence[Group], metric: str) -> Figure:
    """Score of each method's deployed form against its rank, as in the paper's Figure 5, a panel for each test set.

    Bars are 95% intervals over the seeds.

    Raises:
        UserError: no method was run at two ranks.
    """
    by_line = {
        line: ranked for line, several in chosen(found).items() if len(ranked := _best_of_each_rank(several)) > 1
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
            beside = 2 ** (0.03 * (place - (len(by_line) - 1) / 2))  # bars do not hide each other
            points = [(beside * (group.rank or 0), group.scores(group.deployed, metric, test_set)) for group in several]
            _errorbar(ax, points, metric, several[0].with_form(line), _style(place, several[0]))
        ax.set_xscale("log", base=2)
        ax.set_xticks(ranks, [str(rank) for rank in ranks])
        ax.minorticks_off()
        ax.set_title(test_set or "", fontsize=9, loc="left")
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("rank r")
    for ax in axes[::columns]:
        ax.set_ylabel(fitted(metric_named(metric).axis, 1.6 if sets else 2.6), fontsize=9)
    for ax in axes[len(sets) or 1 :]:
        ax.set_axis_off()
    legend(figure, axes[0])
    return figure


def curves_figure(found: Sequence[Group]) -> Figure:
    """Training loss and validation score by epoch: the mean over the seeds, with their range.

    The score is that by which the best epoch is chosen. Of many settings, those that score best on validation data are
    shown; those evaluated less than three times are left out.

    Raises:
        UserError: no run was evaluated three times.
    """
    metric = found[0].selected_by
    lengths = [len(_curve(group, lambda entry: entry["validation"].get(metric))) for group in found]
    curves = [group for group, length in zip(found, lengths, strict=True) if length >= LEAST_EPOCHS]
    if not any(lengths):
        raise UserError("learning curves need results with epochs; a study.json without its runs has none")
    if not curves:
        raise UserError(f"learning curves need runs that were evaluated at least {LEAST_EPOCHS} times")
    curves.sort(key=lambda group: -group.validation_by(metric))
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
            ax.plot(epochs, means, label=name, markersize=4, linewidth=1.2, **_style(place, group))
            if len(group.runs) > 1:
                low, high = ([factor * f(points[epoch]) for epoch in epochs] for f in (min, max))
                ax.fill_between(epochs, low, high, color=_style(place, group)["color"], alpha=0.12, linewidth=0)
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel(fitted(f"validation {metric_named(metric).axis}", 2.0))
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


def _style(place: int, group: Group) -> dict[str, Any]:
    return style(place, group.method, group.deployed)


def _names(by_line: Mapping[str, Sequence[Group]]) -> list[str]:
    return [several[0].with_form(line) for line, several in by_line.items()]


def panels(names: Sequence[str], height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels of a height in inches all together, and room for a legend of these names."""
    return new_figure(columns, WIDTH, height + 0.17 * -(-len(names) // legend_columns(names, WIDTH)), rows=rows)


def _errorbar(
    ax: Axes, points: Sequence[tuple[float, Sequence[float]]], metric: str, label: str, look: Mapping[str, Any]
) -> None:
    scale = metric_named(metric).scale
    points = [(x, values) for x, values in points if values]
    means = [scale * statistics.fmean(values) for _, values in points]
    x, bars = [x for x, _ in points], _bars([values for _, values in points], scale)
    ax.errorbar(x, means, yerr=bars, label=label, capsize=2.5, markersize=5, linewidth=1.2, elinewidth=0.8, **look)


def _bars(several: Sequence[Sequence[float]], scale: float) -> list[float] | None:
    """Half the intervals of some means; not a number, which is not drawn, of one seed."""
    halves = [scale * half_interval(values) for values in several]
    return None if all(map(math.isnan, halves)) else halves
