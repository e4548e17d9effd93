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

_RANKS = (
    "Half of the weights, ranks by the gradients: above LoRA r=8",
    "A quarter of the weights, ranks by the gradients: above LoRA r=8",
    "Are ranks by the gradients better than r=4 on query and value",
)
_SAME_RANKS = "With the same ranks by the gradients, is AuroRA above LoRA"
_TWO_METHODS = tuple(f"{_SAME_RANKS} at {share}" for share in ("half of the weights", "a quarter"))
_TWO_METHODS_TOO = (
    f"{_SAME_RANKS} at half of the weights, both with LoRA's start",
    *(f"Is AuroRA above LoRA at r={r} everywhere" for r in (2, 1)),
    f"{_SAME_RANKS} with as many weights as r=1 everywhere",
)
_FEWER_WEIGHTS = tuple(
    f"Are ranks by the gradients better than r=1 everywhere{start}, with fewer weights"
    for start in ("", " with LoRA's start")
)
_EVERYWHERE = "Is r=1 everywhere above LoRA r=8, both with LoRA's start"
_TWO_EVERYWHERE = (
    "Is AuroRA r=2 everywhere above AuroRA r=2 on query and value",
    "Is AuroRA r=2 everywhere above LoRA r=8",
)
_OTHER_WAYS = (
    *_TWO_EVERYWHERE,
    "Are AuroRA's ranks by the gradients better than r=1 everywhere, with as many weights",
    _EVERYWHERE,
    "Half of the weights with LoRA's start, ranks by the gradients: above LoRA r=8",
    _FEWER_WEIGHTS[1],
    "How far is half of the weights from full fine-tuning",
    *(
        f"Half of the weights, ranks by the gradients: above {other}"
        for other in (
            "EVA r=8",
            "LoRA-GA r=8",
            "LoRA r=8 with the same start",
            *(f"{method} r=8" for method in ("PiSSA", "MoSLoRA", "SineLoRA", "HiRA")),
        )
    ),
)
_MERGES = ("Does the static merge lose against the trained form", "Is the calibrated merge as good as the trained form")
_MERGE = "Does the calibrated merge lose against the trained form"
_MERGES_TOO = ("Does the calibrated merge lose without the skip", "Does the calibrated merge lose at r=2 everywhere")
_HIGH = tuple(f"At a rate far too high, is AuroRA {form}above LoRA" for form in ("", "without the skip "))
_OTHERS = ("ranks-movie-rating", "ranks-digits", "ranks-cifar10", "ranks-wikihow-goal")
_SAME = {r: f"Does AuroRA r={r} without skip beat LoRA r={r}" for r in (1, 2, 4, 8, 16)}
_SAME_WITH_SKIP = "Does AuroRA r=2 beat LoRA r=2"
_SAME_LAYERS = "Is AuroRA above LoRA at r=8"
_SAME_TOO = ("Is AuroRA above LoRA at r=2", f"{_SAME_LAYERS}, both with the aligned start")
_METHODS = ("PiSSA", "EVA", "LoRA-GA", "MoSLoRA", "SineLoRA", "HiRA", "full fine-tuning")
_SKIP = ("Does the skip help",)
_START = ("Does the aligned start help AuroRA r=8",)
_LORA_START = "Does the aligned start help LoRA r=8"
_START_OF_RANKS = ("Does the aligned start help ranks by the gradients",)
_OWN_START = "LoRA with half of the weights and its own start: above LoRA r=8"

CASES = {
    "ranks": {
        "ranks-short": (*_RANKS, *_OTHER_WAYS),
        "ranks-converged": (*_RANKS, _EVERYWHERE, *_FEWER_WEIGHTS),
        **dict.fromkeys(
            ("ranks-digits", "ranks-cifar10", "ranks-wikihow-goal"), (*_RANKS[:2], _EVERYWHERE, *_TWO_EVERYWHERE)
        ),
        "layers": ("Are all linear layers better than query and value",),
        "ranks-movie-rating": (*_RANKS[:2], _OWN_START, _EVERYWHERE, *_TWO_EVERYWHERE),
    },
    "same rank": {
        "captured-effect": (*_SAME.values(), _SAME_WITH_SKIP),
        "movie-sentiment": (*(_SAME[r] for r in (2, 4, 8)), _SAME_WITH_SKIP),
        "movie-rating": (*(_SAME[r] for r in (2, 8)), _SAME_WITH_SKIP),
        "ranks-short": (
            _SAME_LAYERS,
            f"{_SAME_LAYERS}, both with the aligned start",
            *(f"Is AuroRA above LoRA at r={r}" for r in (2, 4)),
            *(f"Is AuroRA above LoRA at r={r}, both with the aligned start" for r in (2, 4)),
            *_TWO_METHODS,
            *_TWO_METHODS_TOO,
        ),
        "ranks-converged": (*_TWO_METHODS, f"{_TWO_METHODS[1]}, both with LoRA's start"),
        "ranks-movie-rating": (_SAME_LAYERS, *_SAME_TOO, *_TWO_METHODS, *_TWO_METHODS_TOO[:2]),
        **dict.fromkeys(
            ("ranks-digits", "ranks-cifar10", "ranks-wikihow-goal"),
            (_SAME_LAYERS, *_SAME_TOO, *_TWO_METHODS, _TWO_METHODS_TOO[1]),
        ),
    },
    "skip": {
        **dict.fromkeys(("captured-effect", "movie-sentiment", "movie-rating"), _SKIP),
        "ranks-short": (
            *(f"Does the skip help at r={r}" for r in (2, 8, 4)),
            *(f"Does the skip help at r={r} with the aligned start" for r in (2, 8)),
        ),
        **dict.fromkeys(_OTHERS, tuple(f"Does the skip help at r={r}" for r in (8, 2))),
    },
    "start": {
        "ranks-short": (
            *_START,
            _LORA_START,
            "Does the aligned start help r=1 everywhere",
            *_START_OF_RANKS,
            f"{_START_OF_RANKS[0]} with as many weights as r=1 everywhere",
        ),
        "ranks-converged": (_LORA_START, "Does the aligned start help a quarter"),
        "ranks-movie-rating": (*_START, _LORA_START, *_START_OF_RANKS),
        **dict.fromkeys(("ranks-digits", "ranks-cifar10", "ranks-wikihow-goal"), (*_START, _LORA_START)),
    },
    "methods": {
        "ranks-short": (
            *(f"Is {method}'s start better than LoRA's" for method in ("PiSSA", "EVA", "LoRA-GA")),
            *(f"Is {method} above LoRA" for method in ("MoSLoRA", "SineLoRA", "HiRA")),
        ),
        **dict.fromkeys(
            ("ranks-movie-rating", "ranks-digits", "ranks-cifar10", "ranks-wikihow-goal"),
            tuple(f"Is {method} above LoRA" for method in _METHODS),
        ),
    },
    "high rates": {"high-rates": _HIGH},
    "merge": {
        **dict.fromkeys(("captured-effect", "movie-sentiment", "movie-rating"), _MERGES),
        "ranks-short": (_MERGE, *_MERGES_TOO),
        **dict.fromkeys(("ranks-movie-rating", "ranks-digits", "ranks-cifar10"), (_MERGE, *_MERGES_TOO)),
        "ranks-wikihow-goal": (
            _MERGE,
            *_MERGES_TOO,
            "In the paper's setting, does the static merge lose against the trained form",
            "In the paper's setting, is training the static form better",
        ),
    },
}
"""By case and study, the questions that decide it, by each study's own metric."""

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
    "LoRA r=1 on all linear\nlayers, minus LoRA r=8": _EVERYWHERE,
    "AuroRA with half of the\nweights, minus LoRA r=8": _RANKS[0],
    "AuroRA minus LoRA, both\nwith half of the weights": _TWO_METHODS[0],
    "AuroRA r=8 minus LoRA r=8,\non query and value": _SAME_LAYERS,
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
    if one.verdict.startswith(("better", "worse")):
        better = one.verdict.startswith("better")
        shape = "^" if better else "v"
        look = {"color": colour("aurora" if better else "lora"), "marker": shape}
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
    for study, asked in CASES[case].items():
        heading, answers = every_answer(summaries[study])[0] if study in summaries else ("", [])
        by_question: dict[str, Answer] = {one.ask: one for one in answers}
        for name in asked:
            if name in by_question:
                one = by_question[name]
                table.rows.append([f"{study}, {heading}", one.first, one.second, *one.cells()])
    verdicts = [row[-1] for row in table.rows]
    better, worse = (sum(verdict.startswith(word) for verdict in verdicts) for word in ("better", "worse"))
    return (
        f"{table.markdown()}\n\nIntervals: {len(verdicts)}, not corrected for their number; the first is better in "
        f"{better}, worse in {worse}."
    )


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
            if _side(one) != _side(other):
                table.rows.append([study, one.first, one.second, *one.cells()[:2], *other.cells()[:2]])
    return f"{table.markdown()}\n\n{len(table.rows)} of {asked} answers."


def _side(one: Answer) -> str:
    """Better, worse or nothing."""
    return next((side for side in ("better", "worse") if one.verdict.startswith(side)), "")


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
