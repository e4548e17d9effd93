"""Score against learning rate: how robust each setting of a study is to the rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ...data.metrics import Metric, metric_named
from ...errors import UserError
from .figures import GREY, fitted, legend, new_figure, style
from .groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = ("training.learning_rate", "training.head_learning_rate")
"""The fields that are a learning rate; the first that any setting was tuned by is shown."""
COLUMNS, WIDTH, ROW = 3, 6.6, 1.25
"""Panels beside each other, and inches."""
MOST_NAMED = 5
"""Rates that are named below a panel; of more, the powers of ten."""


@dataclass(frozen=True)
class Tried:
    """The trials of a setting.

    Args:
        group: the setting.
        scores: by rate, lowest first: the best of the trials with it, None where none gave a score.
        chosen: the rate that was chosen.
    """

    group: Group
    scores: Mapping[float, float | None]
    chosen: float

    @property
    def numbers(self) -> list[float]:
        """The scores that are numbers."""
        return [score for score in self.scores.values() if score is not None]


def tried_rates(summary: Mapping[str, Any], found: Sequence[Group], metric: Metric) -> list[Tried]:
    """The settings of which two rates at least were tried; not by another kind of rate, as a linear probe's is.

    Args:
        summary: the study.json.
        found: the settings.
        metric: of the validation scores.
    """
    return list(_tried(summary, found, min if metric.lower_is_better else max))


def _tried(summary: Mapping[str, Any], found: Sequence[Group], best: Any) -> Iterator[Tried]:
    settings = {setting["name"]: setting for setting in summary["settings"]}
    shown = [settings[group.label] for group in found]
    field = next((name for name in RATES if any(name in setting["chosen"] for setting in shown)), None)
    for group, setting in zip(found, shown, strict=True):
        by_rate: dict[float, list[float]] = {}
        for trial in setting["trials"] if field in setting["chosen"] else ():
            score = trial["validation"]
            by_rate.setdefault(trial["values"][field], []).extend([] if score is None else [score])
        scores = {rate: best(values) if values else None for rate, values in sorted(by_rate.items())}
        if len(scores) > 1:
            yield Tried(group, scores, setting["chosen"][field])


def rates_figure(summary: Mapping[str, Any], found: Sequence[Group], metric_name: str) -> Figure:
    """The validation score of every trial against its learning rate, a panel for each method with its ranks; grey are
    the others. A rank has the same marker and line in every panel. A ring marks the rate that was chosen. What is far
    behind, or failed, lies on the edge as a cross.

    Raises:
        UserError: no setting was tried with two rates.
    """
    metric = metric_named(metric_name)
    tried = tried_rates(summary, found, metric)
    if not tried:
        raise UserError("score against learning rate needs a setting that was tried with two of them")
    lines: dict[str, list[Tried]] = {}
    for one in tried:
        lines.setdefault(one.group.line or one.group.label, []).append(one)
    columns = min(COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    figure, axes = new_figure(columns, WIDTH * max(columns, 2) / COLUMNS, 0.7 + ROW * rows, rows=rows)
    worst, best = _limits(tried, metric)
    ranks = sorted({one.group.rank for one in tried if one.group.rank is not None})
    margin = 0.08 * (best - worst) or (-1e-3 if metric.lower_is_better else 1e-3)  # all the same
    worst, best = worst - margin, best + margin
    for ax, (line, several) in zip(axes, lines.items(), strict=False):
        for other in tried:
            if other not in several:
                _draw(ax, other, metric, worst, {"color": "#D9D9D9", "linewidth": 0.7, "zorder": 1}, marks=False)
        for one in several:
            place = len(ranks) if one.group.rank is None else ranks.index(one.group.rank)
            look = {**style(place, one.group.method, one.group.deployed), "linewidth": 1.3, "zorder": 3}
            _draw(ax, one, metric, worst, look)
        ax.set_xscale("log")
        ax.set_ylim(*sorted((worst, best)))
        ax.set_title("\n".join(wrap(line, 30)), fontsize=7.5, loc="left")
        ax.tick_params(labelsize=7)
    if len(ranks) > 1:
        for place, rank in enumerate(ranks):
            axes[0].plot([], [], label=f"r={rank}", markersize=4.5, **{**style(place, ""), "color": GREY})
        legend(figure, axes[0], above=True)
    _share(axes, len(lines), columns, sorted({rate for one in tried for rate in one.scores}))
    figure.supylabel(fitted(f"validation {metric.axis}", 0.4 + ROW * rows), fontsize=8.5)
    figure.supxlabel("learning rate", fontsize=8.5)
    return figure


def _limits(tried: Sequence[Tried], metric: Metric) -> tuple[float, float]:
    """Where the score's axis ends, at its bad end and its good one. A rate that is too high may score any number, and
    would leave no room for the rest: what is much farther behind than the settings' best, and most scores, is beyond.
    """
    sign = metric.sign
    scores = [[sign * metric.scale * score for score in one.numbers] for one in tried if one.numbers]
    if not scores:
        raise UserError("score against learning rate needs a trial with a score")
    every, tops = [score for several in scores for score in several], [max(several) for several in scores]
    best = max(every)
    behind = max(1.5 * (best - min(tops)), 2 * statistics.median(best - score for score in every))
    return sign * max(min(every), best - behind - 0.01 * abs(best)), sign * best


def _draw(ax: Axes, one: Tried, metric: Metric, worst: float, look: Mapping[str, Any], *, marks: bool = True) -> None:
    """A setting's line; a cross on the edge is a trial beyond it, or one without a score."""
    sign = metric.sign
    shown = {rate: math.nan if score is None else metric.scale * score for rate, score in one.scores.items()}
    beyond = [rate for rate, score in shown.items() if not sign * score >= sign * worst]
    line = {key: value for key, value in look.items() if key not in ("marker", "markerfacecolor")}
    ax.plot([*shown], [*shown.values()], **line)
    if not marks:
        return
    inside = {rate: score for rate, score in shown.items() if rate not in beyond}
    if inside:
        points = {**look, "linestyle": "none", "markersize": 4.5, "clip_on": False}
        ax.plot([*inside], [*inside.values()], **points)
    edge = {"color": look["color"], "marker": "x", "markersize": 5, "linestyle": "none"}
    if beyond:  # a layout takes a line of no points for one at the corner of the figure
        ax.plot(beyond, [worst] * len(beyond), **edge, clip_on=False, zorder=4)
    if one.chosen in inside:
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": "none", "color": look["color"]}
        ax.plot([one.chosen], [inside[one.chosen]], **ring, clip_on=False, zorder=4)


def _share(axes: Sequence[Axes], used: int, columns: int, rates: Sequence[float]) -> None:
    """One pair of axes for all panels: numbers at the left and at the bottom of each column."""
    ends = [ax.get_xlim() for ax in axes[:used]]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    for place, ax in enumerate(axes):
        if place >= used:
            ax.set_axis_off()
            continue
        if len(rates) <= MOST_NAMED:
            ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
        ax.set_xlim(low, high)
        if place % columns:
            ax.set_yticklabels([])
        if place + columns < used:
            ax.set_xticklabels([])
