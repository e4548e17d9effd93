"""Figures of a set of runs: scores (Figure 1), score against rank (Figure 5), and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...data.metrics import metric_named
from ...errors import UserError
from .figures import GRID, LETTER, WIDTH, fitted, legend, new_figure, panels, style
from .runs import best, evaluations
from .tables import count, half_interval, mean

if TYPE_CHECKING:
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
    if shown["setting"].nunique() == 1:
        raise UserError("the scores of a single setting are in the table")
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
