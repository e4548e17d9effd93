"""The figure of "When is AuroRA worth it?" and the tables of its evidence: answers of the studies, and scores beyond
the best learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control

from aurora_lora.data.metrics import metric_named
from aurora_lora.lab.report.figures import GREY, GRID, colour, new_figure
from aurora_lora.lab.report.runs import evaluations
from aurora_lora.lab.report.study import MARGIN, Answer, answers, every_answer
from aurora_lora.lab.report.tables import p_value
from aurora_lora.text_table import TextTable
from aurora_lora.train.recipe_files import read

SHOWN: dict[str, Any] = read(Path(__file__).with_name("questions.yaml"))
CASES, ROWS, PANELS, FEWER_WEIGHTS, SETTLED, RATES = (
    SHOWN[name] for name in ("cases", "rows", "panels", "fewer_weights", "settled", "rates")
)
EDGE = 10.0
"""Points that are drawn on both sides of 0."""


def main_answers(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The answers to what is asked most, a row for each of `ROWS`; whiskers are 95% intervals.

    Args:
        summaries: `study.json` by the study's name.
    """
    rows: dict[str, dict[str, Answer]] = {}
    for study, row in ROWS.items():
        if study in summaries:
            rows[row] = {one.ask: one for one in every_answer(summaries[study])[0][1]}
    figure, axes = new_figure(2, 5.4, 2 * (1.2 + 0.24 * len(rows)), rows=-(-len(PANELS) // 2))
    for number, (ax, (title, ask)) in enumerate(zip(axes, PANELS.items(), strict=True)):
        for place, by_question in enumerate(rows.values()):
            if ask in by_question:
                _draw(ax, place, by_question[ask])
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_xlim(-EDGE, EDGE)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), list(rows) if number % 2 == 0 else [""] * len(rows), fontsize=8)
        ax.grid(axis="x", **GRID)
        ax.tick_params(axis="x", labelsize=8)
        ax.set_xlabel("points", fontsize=8)
        ax.set_title(title, fontsize=8, loc="left")
    return figure


def _draw(ax: Axes, place: int, one: Answer) -> None:
    scale = metric_named(one.metric).scale
    look: dict[str, Any] = {"color": GREY, "marker": "o", "markerfacecolor": "white"}
    if one.side:
        better = one.side == "better"
        look = {"color": colour("aurora" if better else "lora"), "marker": "^" if better else "v"}
    ends = [scale * end for end in one.interval if not math.isnan(end)]
    ax.plot(ends, [place] * len(ends), "-", color=look["color"], linewidth=1.6)
    for end in ends:
        if abs(end) > EDGE:  # it goes on
            side, shape = (EDGE, ">") if end > 0 else (-EDGE, "<")
            ax.plot([side], [place], shape, color=look["color"], markersize=5, clip_on=False)
    ax.plot([scale * one.difference], [place], linestyle="", markersize=6, **look)


def answered(summaries: Mapping[str, Mapping[str, Any]], case: str) -> str:
    """The answers that decide a case, as Markdown, how many intervals they are, and how many are on one side of 0.

    Args:
        summaries: `study.json` by the study's name.
        case: of `CASES`.
    """
    table = TextTable("", ["study", "first", "second", "difference", "95% interval", "first vs second"], align="lllrrl")
    rows: list[tuple[str, Answer]] = []
    for study, asked in CASES[case].items():
        by_question: dict[str, list[tuple[str, Answer]]] = {}
        for heading, found in _by_its_metrics(summaries[study]) if study in summaries else ():
            for one in found:
                by_question.setdefault(one.ask, []).append((f"{study}, {heading}", one))
        rows += [row for name in asked for row in by_question.get(name, ())]
    shown = [one for _, one in rows]
    remaining = _discoveries(shown)
    for heading, one in rows:
        *cells, verdict = one.cells()
        mark = " †" if any(one is other for other in remaining) else ""
        table.rows.append([heading, one.first, one.second, *cells, f"{verdict}{mark}"])
    sides, kept = [one.side for one in shown], [one.side for one in remaining]
    return (
        f"{table.markdown()}\n\nIntervals: {len(sides)}, not corrected for their number; the first is better in "
        f"{sides.count('better')}, worse in {sides.count('worse')}. Corrected, with a false discovery rate of 5% (†): "
        f"better in {kept.count('better')}, worse in {kept.count('worse')}."
    )


def _discoveries(found: Sequence[Answer]) -> list[Answer]:
    """Those that differ from 0 with a false discovery rate of 5%, by Benjamini and Hochberg."""
    known = [(one, p) for one in found if not math.isnan(p := p_value([*one.by_seed.values()]))]
    adjusted = list(false_discovery_control([p for _, p in known])) if known else []
    return [one for (one, _), p in zip(known, adjusted, strict=True) if p <= 0.05]


def fewer_weights(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The answers of `FEWER_WEIGHTS` in the main score, a column for each study, as Markdown; bold where the interval
    is on one side of 0.

    Args:
        summaries: `study.json` by the study's name.
    """
    there = {study: title for study, title in ROWS.items() if study in summaries}
    table = TextTable("", ["points", *there.values()], align="l" + "r" * len(there))
    by_study = {study: {one.ask: one for one in answers(summaries[study])} for study in there}
    for words, ask in FEWER_WEIGHTS.items():
        cells = []
        for study in there:
            one = by_study[study].get(ask)
            difference = "" if one is None else one.cells()[0]
            cells.append(f"**{difference}**" if one is not None and one.side else difference)
        table.rows.append([words, *cells])
    return table.markdown()


def default_at_the_same_rank(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The default, with the skip, beside LoRA of its ranks, all pairs of a study at once in its main score: the mean
    over the pairs by seed, as Markdown, and how many of the pairs there are of each verdict.

    Args:
        summaries: `study.json` by the study's name.
    """
    heads = ["study", "pairs", "difference, mean over the pairs", "95% interval", "AuroRA vs LoRA"]
    table = TextTable("", heads, align="lrrrl")
    verdicts: list[str] = []
    for study, asked in CASES["same rank"].items():
        found = [one for one in answers(summaries[study]) if one.ask in asked] if study in summaries else []
        pairs = [one for one in found if "without skip" not in one.first]
        if pairs:
            seeds = set.intersection(*(set(one.by_seed) for one in pairs))
            mean = {seed: fmean(one.by_seed[seed] for one in pairs) for seed in sorted(seeds)}
            over = Answer("", "", "", pairs[0].metric, mean, MARGIN)
            heading = f"{study}, {metric_named(over.metric).heading}"
            table.rows.append([heading, str(len(pairs)), *over.cells()])
            verdicts += [one.verdict for one in pairs]
    numbers = {word: sum(one.startswith(word) for one in verdicts) for word in ("better", "worse", "equivalent", "no ")}
    return (
        f"{table.markdown()}\n\nPairs: {len(verdicts)}; better in {numbers['better']}, worse in {numbers['worse']}, "
        f"equivalent within 1 point in {numbers['equivalent']}, no significant difference in {numbers['no ']}."
    )


def by_epoch(scores: pd.DataFrame, pairs: Mapping[str, Sequence[str]]) -> str:
    """Differences between settings in the validation score after each evaluation, paired by seed, as Markdown.

    Args:
        scores: of a study's section.
        pairs: by the setting that comes first, those that it is compared with.
    """
    metric = scores["selected_by"].iloc[0]
    by_seed = evaluations(scores).pivot(index="seed", columns=["setting", "epoch"], values="validation")
    epochs = sorted(by_seed.columns.unique("epoch"))
    heads = ["first", "second", *(f"epoch {epoch:g}" for epoch in epochs), "change in the last"]
    table = TextTable("", heads, align="ll" + "r" * (len(epochs) + 1))
    for first, second in ((first, second) for first, others in pairs.items() for second in others):
        difference = by_seed[first] - by_seed[second]
        difference["change"] = difference[epochs[-1]] - difference[epochs[-2]]
        each = [Answer("", first, second, metric, difference[one].to_dict()).cells() for one in (*epochs, "change")]
        table.rows.append([first, second, *(f"{cells[0]} ({cells[1]})" for cells in each)])
    return table.markdown()


def _by_its_metrics(summary: Mapping[str, Any]) -> list[tuple[str, list[Answer]]]:
    """The answers in the study's metric and, if it is another, in the one that its values are chosen by, below their
    headings."""
    chosen_by = summary["study"].get("tuning", {}).get("metric")
    first, *others = every_answer(summary)
    return [first, *(one for one in others if any(answer.metric == chosen_by for answer in one[1]))]


def without_seed(summaries: Mapping[str, Mapping[str, Any]], studies: Sequence[str], seed: int) -> str:
    """The answers by the studies' own metric that are better or worse with all seeds and not without one of them, or
    the other way round, as Markdown.

    Args:
        summaries: `study.json` by the study's name.
        studies: whose answers.
        seed: that is left out.
    """
    heads = ["study", "first", "second", "all seeds", "95% interval", f"without seed {seed}", "95% interval"]
    table = TextTable("", heads, align="lllrrrr")
    asked = 0
    for study in (study for study in studies if study in summaries):
        summary = summaries[study]
        less = {one.ask: one for one in answers(summary, without=seed)}
        for one in answers(summary):
            asked += 1
            other = less[one.ask]
            if one.side != other.side:
                table.rows.append([study, one.first, one.second, *one.cells()[:2], *other.cells()[:2]])
    return f"{table.markdown()}\n\n{len(table.rows)} of {asked} answers."


def beyond_the_best(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores at each rate that two settings were tuned with, on the seed that was tuned on and in the form that is
    deployed, as Markdown.

    Args:
        summaries: `study.json` by the study's name.
    """
    rows: list[tuple[str, str, dict[float, str]]] = []
    for study, names in RATES.items():
        settings = {one["name"]: one for one in summaries.get(study, {}).get("settings", [])}
        for name in names if study in summaries else ():
            metric = metric_named(settings[name]["metric"])
            scores = {
                trial["values"]["training.learning_rate"]: metric.shown(trial["validation"])
                for trial in settings[name]["trials"]
                if trial["validation"] is not None
            }
            rows.append((f"{study}, {metric.heading}", name, scores))
    rates = sorted({rate for *_, scores in rows for rate in scores})
    table = TextTable("", ["study", "setting", *(f"{rate:g}" for rate in rates)], align="llr")
    table.rows = [[study, name, *(scores.get(rate, "") for rate in rates)] for study, name, scores in rows]
    return table.markdown()
