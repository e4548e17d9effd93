"""Figures of a set of runs: scores (Figure 1), score against rank (Figure 5), learning curves, and score against
learning rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ...data.metrics import Metric, metric_named
from ...errors import UserError
from .figures import GREY, GRID, LETTER, WIDTH, colour, fitted, legend, new_figure, panels, style
from .groups import Group, chosen, half_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 7
LEAST_EPOCHS = 3
"""Evaluations that make a learning curve."""
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


# ---------------------------------------------------------------- score against learning rate


RATES = ("training.learning_rate", "training.head_learning_rate")
"""The fields that are a learning rate; the first that any setting was tuned by is shown."""
COLUMNS, PAGE, ROW = 3, 6.6, 1.25
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
    best = min if metric.lower_is_better else max
    settings = {setting["name"]: setting for setting in summary["settings"]}
    shown = [settings[group.label] for group in found]
    field = next((name for name in RATES if any(name in setting["chosen"] for setting in shown)), None)
    tried = []
    for group, setting in zip(found, shown, strict=True):
        by_rate: dict[float, list[float]] = {}
        for trial in setting["trials"] if field in setting["chosen"] else ():
            score = trial["validation"]
            by_rate.setdefault(trial["values"][field], []).extend([] if score is None else [score])
        scores = {rate: best(values) if values else None for rate, values in sorted(by_rate.items())}
        if len(scores) > 1:
            tried.append(Tried(group, scores, setting["chosen"][field]))
    return tried


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
    figure, axes = new_figure(columns, PAGE * max(columns, 2) / COLUMNS, 0.7 + ROW * rows, rows=rows)
    worst, best = _limits(tried, metric)
    ranks = sorted({one.group.rank for one in tried if one.group.rank is not None})
    margin = 0.08 * (best - worst) or (-1e-3 if metric.lower_is_better else 1e-3)  # all the same
    worst, best = worst - margin, best + margin
    for ax, (line, several) in zip(axes, lines.items(), strict=False):
        for other in tried:
            if other not in several:
                _draw_trials(ax, other, metric, worst, {"color": "#D9D9D9", "linewidth": 0.7, "zorder": 1}, marks=False)
        for one in several:
            place = len(ranks) if one.group.rank is None else ranks.index(one.group.rank)
            look = {**style(place, one.group.method, one.group.deployed), "linewidth": 1.3, "zorder": 3}
            _draw_trials(ax, one, metric, worst, look)
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


def _draw_trials(
    ax: Axes, one: Tried, metric: Metric, worst: float, look: Mapping[str, Any], *, marks: bool = True
) -> None:
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
