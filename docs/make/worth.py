"""The figure of "When is AuroRA worth it?" and the tables of its evidence: answers of the studies, and scores beyond
the best learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aurora_lora.lab.report.answers import Answer, answers, every_answer
from aurora_lora.lab.report.colours import GREY, colour
from aurora_lora.lab.report.figures import new_figure
from aurora_lora.tasks.metrics import metric_named
from aurora_lora.text_table import TextTable

from .cases import CASES, EVERYWHERE, RANKS, SAME_LAYERS, TWO_METHODS

_HALF = ("LoRA 37k by gradients", "AuroRA 37k by gradients")
_ROBUST = ("LoRA r=8", "AuroRA r=8", "AuroRA r=8 without skip")
PAIRS = {
    "captured-effect": tuple(
        (f"LoRA r={r}", *(["AuroRA r=2"] if r == 2 else []), f"AuroRA r={r} without skip") for r in (2, 8, 16)
    ),
    "movie-rating": (("LoRA r=8", "AuroRA r=8 without skip"),),
    "movie-sentiment": (("LoRA r=8", "AuroRA r=8 without skip"),),
    "ranks-short": (
        ("LoRA r=2", "AuroRA r=2", "AuroRA r=2 without skip"),
        ("LoRA r=4", "AuroRA r=4", "AuroRA r=4 without skip"),
        _ROBUST,
        ("LoRA r=2 everywhere", "AuroRA r=2 everywhere"),
        _HALF,
        ("MoSLoRA r=8",),
    ),
    "ranks-movie-rating": (_ROBUST,),
    "ranks-converged": (_HALF, ("LoRA 18k by gradients", "AuroRA 18k by gradients")),
}
"""By study, settings of LoRA and AuroRA alike in all but the method, that were tuned over the same rates; and another
method that is robust."""

ROWS = {
    "ranks-short": "captured effect, 2 epochs",
    "ranks-converged": "captured effect, 10 epochs",
    "ranks-movie-rating": "movie-rating, Pearson",
    "ranks-digits": "digits, accuracy",
    "ranks-cifar10": "CIFAR-10, accuracy",
    "ranks-wikihow-goal": "wikihow-goal, accuracy",
}
"""Of the figure, the studies and what they measure."""
PANELS = {
    "LoRA r=1 on all linear\nlayers, minus LoRA r=8": EVERYWHERE,
    "AuroRA with half of the\nweights, minus LoRA r=8": RANKS[0],
    "AuroRA minus LoRA, both\nwith half of the weights": TWO_METHODS[0],
    "AuroRA r=8 minus LoRA r=8,\non query and value": SAME_LAYERS,
}
"""Of the figure, the question of each panel, of the studies of ranks."""
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
    figure, axes = new_figure(len(PANELS), 9.0, 1.3 + 0.3 * len(rows))
    for number, (ax, (title, ask)) in enumerate(zip(axes, PANELS.items(), strict=True)):
        for place, by_question in enumerate(rows.values()):
            if ask in by_question:
                _draw(ax, place, by_question[ask])
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_xlim(-EDGE, EDGE)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), list(rows) if number == 0 else [""] * len(rows), fontsize=8)
        ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
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
    ends = [] if one.low is None or one.high is None else [scale * one.low, scale * one.high]
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
    sides: list[str] = []
    for study, asked in CASES[case].items():
        by_question: dict[str, list[tuple[str, Answer]]] = {}
        for heading, found in _by_its_metrics(summaries[study]) if study in summaries else ():
            for one in found:
                by_question.setdefault(one.ask, []).append((f"{study}, {heading}", one))
        shown = [row for name in asked for row in by_question.get(name, ())]
        table.rows += [[heading, one.first, one.second, *one.cells()] for heading, one in shown]
        sides += [one.side for _, one in shown]
    better, worse = (sides.count(side) for side in ("better", "worse"))
    return (
        f"{table.markdown()}\n\nIntervals: {len(sides)}, not corrected for their number; the first is better in "
        f"{better}, worse in {worse}."
    )


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
        fewer = {**summary, "settings": [_without(setting, seed) for setting in summary["settings"]]}
        less = {one.ask: one for one in answers(fewer)}
        for one in answers(summary):
            asked += 1
            other = less[one.ask]
            if one.side != other.side:
                table.rows.append([study, one.first, one.second, *one.cells()[:2], *other.cells()[:2]])
    return f"{table.markdown()}\n\n{len(table.rows)} of {asked} answers."


def _without(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A setting of a `study.json` without the scores of a seed."""
    lost = setting["seeds"].index(seed)

    def kept(forms: Mapping[str, Any]) -> dict[str, Any]:
        return {
            form: {
                name: {**scores, "scores": [None if n == lost else one for n, one in enumerate(scores["scores"])]}
                for name, scores in by_metric.items()
            }
            for form, by_metric in forms.items()
        }

    by_choice = {form: kept(forms) for form, forms in setting.get("by_choice", {}).items()}
    return {**setting, "by_form": kept(setting["by_form"]), **({"by_choice": by_choice} if by_choice else {})}


def beyond_the_best(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores at each rate that two settings were tuned with, on the seed that was tuned on and in the form that is
    deployed, as Markdown.

    Args:
        summaries: `study.json` by the study's name.
    """
    rows: list[tuple[str, str, dict[float, str]]] = []
    for study, pairs in PAIRS.items():
        settings = {one["name"]: one for one in summaries.get(study, {}).get("settings", [])}
        for name in (name for pair in pairs for name in pair if study in summaries):
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
