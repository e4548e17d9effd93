"""Figures of a set of runs: scores (Figure 1), score against rank (Figure 5), learning curves, and score against
learning rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...data.metrics import Metric, metric_named
from ...errors import UserError
from .figures import GREY, GRID, LETTER, WIDTH, fitted, legend, new_figure, panels, style
from .runs import best, evaluations
from .tables import count, half_interval, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 7
LEAST_EPOCHS = 3
"""Evaluations that make a learning curve."""
LEAST_PLOT = 2.4
"""Inches: of what is plotted beside names."""


def score_figure(scores: pd.DataFrame, metric: str) -> Figure:
    """Score of each setting's deployed form, a row each, the best first, with its trained parameters at the right.

    Bars are 95% intervals over the seeds.

    Args:
        scores: see `measured`.
        metric: what is shown.
    """
    known, shown = metric_named(metric), _deployed(scores, metric)
    shown = shown[shown["test_set"] == ""].dropna(subset="score")
    if shown.empty:
        raise UserError(f"no run has a finite {known.axis}")
    rows = [of for _, of in shown.groupby("setting", sort=False)]
    rows.sort(key=lambda of: -known.sign * statistics.fmean(of["score"]))
    names = [_with_form(of, "setting") for of in rows]
    counted = [count(of["params"].min(), of["params"].max()) for of in rows]
    beside = max(map(len, names)) + max(map(len, counted))
    figure, (ax,) = new_figure(1, max(WIDTH, LEAST_PLOT + LETTER * beside), 1.5 + 0.2 * len(rows))
    for place, (of, params) in enumerate(zip(rows, counted, strict=True)):
        look: dict[str, Any] = {"color": _style(0, of)["color"], "marker": "o"}
        mean, bars = known.scale * statistics.fmean(of["score"]), _bars([of["score"].tolist()], known.scale)
        ax.errorbar([mean], [place], xerr=bars, capsize=2.5, markersize=4.5, elinewidth=1, linestyle="none", **look)
        ax.text(1.02, place, params, transform=ax.get_yaxis_transform(), fontsize=7.5, va="center")
    ax.text(1.02, 1.02, "trained\nparameters", transform=ax.transAxes, fontsize=7.5)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x", **GRID)
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel(known.axis, fontsize=9)
    return figure


def rank_figure(scores: pd.DataFrame, metric: str) -> Figure:
    """Score of each method's deployed form against its rank, as in the paper's Figure 5, a panel for each test set.

    Bars are 95% intervals over the seeds.

    Args:
        scores: see `measured`.
        metric: what is shown.

    Raises:
        UserError: no method was run at two ranks.
    """
    known, ranked = metric_named(metric), _deployed(scores, metric).dropna(subset="rank")
    ranked = ranked[ranked.groupby("line")["rank"].transform("nunique") > 1]
    if ranked.empty:
        raise UserError("score against rank needs runs of one method at two ranks at least")
    lines = {line: of.sort_values("rank", kind="stable") for line, of in ranked.groupby("line", sort=False)}
    names = [_with_form(of, "line") for of in lines.values()]
    sets = [name for name in ranked["test_set"].unique() if name]
    columns, rows = (2, (len(sets) + 1) // 2) if sets else (1, 1)
    figure, axes = panels(names, 2.2 * rows if sets else 3.0, rows, columns)
    ranks = sorted(ranked["rank"].unique())
    shown = sets or [""]
    for ax, test_set in zip(axes, shown, strict=False):
        for place, (name, of) in enumerate(zip(names, lines.values(), strict=True)):
            beside = 2 ** (0.03 * (place - (len(lines) - 1) / 2))  # bars do not hide each other
            there = of[of["test_set"] == test_set].dropna(subset="score")
            points = {beside * rank: values.tolist() for rank, values in there.groupby("rank")["score"]}
            means = [known.scale * statistics.fmean(values) for values in points.values()]
            bars, look = _bars([*points.values()], known.scale), _style(place, of)
            ax.errorbar(
                [*points],
                means,
                yerr=bars,
                label=name,
                capsize=2.5,
                markersize=5,
                linewidth=1.2,
                elinewidth=0.8,
                **look,
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
        ax.minorticks_off()
        ax.set_title(test_set, fontsize=9, loc="left")
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("rank r")
    for ax in axes[::columns]:
        ax.set_ylabel(fitted(known.axis, 1.6 if sets else 2.6), fontsize=9)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    legend(figure, axes[0])
    return figure


def curves_figure(scores: pd.DataFrame) -> Figure:
    """Training loss and validation score by epoch: the mean over the seeds, with their range.

    The score is that by which the best epoch is chosen. Of many settings, those that score best on validation data are
    shown; those evaluated less than three times are left out.

    Args:
        scores: see `measured`.

    Raises:
        UserError: no run was evaluated three times.
    """
    metric, evaluated = metric_named(scores["selected_by"].iloc[0]), evaluations(scores)
    by_setting = evaluated.dropna(subset="validation").groupby("setting")["epoch"].nunique()
    curves = {
        name: of.drop_duplicates("seed")
        for name, of in scores.groupby("setting", sort=False)
        if by_setting.get(name, 0) >= LEAST_EPOCHS
    }
    if not curves:
        raise UserError(f"learning curves need runs that were evaluated at least {LEAST_EPOCHS} times")
    standing = pd.Series({name: metric.sign * mean(runs["validation"]) for name, runs in curves.items()})
    order = standing.sort_values(ascending=False, kind="stable").index
    names = [_with_form(curves[setting], "setting") for setting in order[:MOST_CURVES]]
    figure, axes = panels(names, 4.8, rows=2)
    for place, (name, setting) in enumerate(zip(names, order, strict=False)):
        own, look = evaluated[evaluated["setting"] == setting], _style(place, curves[setting])
        for ax, column, scale in ((axes[0], "train_loss", 1), (axes[1], "validation", metric.scale)):
            points = (scale * own.set_index("epoch")[column].dropna()).groupby("epoch").agg(["mean", "min", "max"])
            ax.plot(points.index, points["mean"], label=name, markersize=4, linewidth=1.2, **look)
            if len(curves[setting]) > 1:
                ends = points["min"], points["max"]
                ax.fill_between(points.index, *ends, color=look["color"], alpha=0.12, linewidth=0)
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel(fitted(f"validation {metric.axis}", 2.0))
    axes[1].set_xlabel("epoch")
    for ax in axes:
        ax.locator_params(axis="x", integer=True)
    if len(curves) > MOST_CURVES:
        axes[0].set_title(
            f"the {MOST_CURVES} best of {len(curves)} settings on validation data", fontsize=8, loc="left"
        )
    legend(figure, axes[0])
    return figure


def _deployed(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The scores of the deployed forms of the settings to show."""
    shown = best(scores)
    return shown[(shown["form"] == shown["deployed"]) & (shown["metric"] == metric)]


def _with_form(of: pd.DataFrame, column: str) -> str:
    """The name of a setting or line, with the form that is deployed where there are several."""
    first = of.iloc[0]
    return f"{first[column]} ({first['deployed']})" if first["several"] else str(first[column])


def _style(place: int, of: pd.DataFrame) -> dict[str, Any]:
    return style(place, of["method"].iloc[0], of["deployed"].iloc[0])


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


def rates_figure(summary: Mapping[str, Any], scores: pd.DataFrame, metric_name: str) -> Figure:
    """The validation score of every trial against its learning rate, a panel for each method with its ranks; grey are
    the others. A rank has the same marker and line in every panel. A ring marks the rate that was chosen. What is far
    behind, or failed, lies on the edge as a cross. Settings that were tuned by another kind of rate are left out, as a
    linear probe, and so are those that were tried with one; of the trials with one rate the best is shown.

    Args:
        summary: the study.json.
        scores: see `measured`.
        metric_name: of the validation scores.

    Raises:
        UserError: no setting was tried with two rates.
    """
    metric, tried = metric_named(metric_name), dict[str, pd.Series]()
    settings = {one["name"]: one for one in summary["settings"] if one["name"] in set(scores["setting"])}
    field = next((name for name in RATES if any(name in one["chosen"] for one in settings.values())), None)
    for name, one in settings.items():
        trials = [(trial["values"][field], trial["validation"]) for trial in one["trials"] if field in one["chosen"]]
        of_rate = pd.DataFrame(trials, columns=["rate", "score"]).astype(float).groupby("rate")["score"]
        if of_rate.ngroups > 1:
            tried[name] = metric.scale * (of_rate.min() if metric.lower_is_better else of_rate.max())
    if not tried:
        raise UserError("score against learning rate needs a setting that was tried with two of them")
    shown = scores[scores["setting"].isin(tried)].drop_duplicates("setting")
    lines = [of for _, of in shown.groupby("line", sort=False)]
    columns = min(COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    figure, axes = new_figure(columns, PAGE * max(columns, 2) / COLUMNS, 0.7 + ROW * rows, rows=rows)
    worst, high = _limits([of.dropna() for of in tried.values()], metric)
    ranks = sorted(shown["rank"].dropna().unique())
    margin = 0.08 * (high - worst) or (-1e-3 if metric.lower_is_better else 1e-3)  # all the same
    worst, high = worst - margin, high + margin
    for ax, of in zip(axes, lines, strict=False):
        for name in (name for name in tried if name not in set(of["setting"])):
            ax.plot(tried[name].index, tried[name], color="#D9D9D9", linewidth=0.7, zorder=1)
        for one in of.itertuples():
            place = ranks.index(one.rank) if one.rank in ranks else len(ranks)
            look = {**style(place, one.method, one.deployed), "zorder": 3}
            _draw_trials(ax, tried[one.setting], settings[one.setting]["chosen"][field], metric, worst, look)
        ax.set_xscale("log")
        ax.set_ylim(*sorted((worst, high)))
        ax.set_title("\n".join(wrap(of["line"].iloc[0], 30)), fontsize=7.5, loc="left")
        ax.tick_params(labelsize=7)
    if len(ranks) > 1:
        for place, rank in enumerate(ranks):
            axes[0].plot([], [], label=f"r={rank:g}", markersize=4.5, **{**style(place, ""), "color": GREY})
        legend(figure, axes[0], above=True)
    _share(axes, len(lines), columns, sorted({rate for of in tried.values() for rate in of.index}))
    figure.supylabel(fitted(f"validation {metric.axis}", 0.4 + ROW * rows), fontsize=8.5)
    figure.supxlabel("learning rate", fontsize=8.5)
    return figure


def _limits(tried: Sequence[pd.Series], metric: Metric) -> tuple[float, float]:
    """Where the score's axis ends, at its bad end and its good one. A rate that is too high may score any number, and
    would leave no room for the rest: what is much farther behind than the settings' best, and most scores, is beyond.
    """
    several = [[metric.sign * score for score in of] for of in tried if len(of)]
    if not several:
        raise UserError("score against learning rate needs a trial with a score")
    every, tops = [score for of in several for score in of], [max(of) for of in several]
    high = max(every)
    behind = max(1.5 * (high - min(tops)), 2 * statistics.median(high - score for score in every))
    return metric.sign * max(min(every), high - behind - 0.01 * abs(high)), metric.sign * high


def _draw_trials(
    ax: Axes, tried: pd.Series, chosen: float, metric: Metric, worst: float, look: Mapping[str, Any]
) -> None:
    """A setting's line, with a ring at the rate that was chosen; a cross on the edge is a trial beyond it, or one
    without a score."""
    inside = tried[metric.sign * tried >= metric.sign * worst]
    line = {key: value for key, value in look.items() if key not in ("marker", "markerfacecolor")}
    ax.plot(tried.index, tried, linewidth=1.3, **line)
    on_top: dict[str, Any] = {"linestyle": "none", "clip_on": False}
    if len(inside):  # a layout takes a line of no points for one at the corner of the figure
        ax.plot(inside.index, inside, **{**look, **on_top, "linewidth": 1.3}, markersize=4.5)
    if len(beyond := tried.index.difference(inside.index)):
        ax.plot(beyond, [worst] * len(beyond), color=look["color"], marker="x", markersize=5, zorder=4, **on_top)
    if chosen in inside:
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": look["color"]}
        ax.plot([chosen], [inside[chosen]], zorder=4, **ring, **on_top)


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
