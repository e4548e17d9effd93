"""The questions of a study, answered by differences between its settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...data.metrics import metric_named
from .groups import interval
from .tables import of_seeds

MARGIN = 1.0
"""Points of a metric in percent within which two scores count as equivalent, unless the question says otherwise."""


@dataclass(frozen=True)
class Answer:
    """A question of a study, answered: the first's score less the second's, paired by seed.

    Args:
        ask: the question.
        first: setting and form.
        second: setting and form.
        metric: of the scores.
        difference: mean over the seeds.
        low: the lower end of the 95% interval; None below two seeds.
        high: its 95% interval, of Student's t over the paired differences; None below two seeds.
        by_seed: the differences, of the seeds that both have.
        margin: within which the two count as equivalent, as the metric is shown (in points where it is in percent);
            None for no such verdict.
        seeds: how many the study has.
    """

    ask: str
    first: str
    second: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]
    margin: float | None = None
    seeds: int = 0

    @property
    def side(self) -> str:
        """`better` or `worse`, of the first, where the interval is on one side of 0; else nothing."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return ""
        return "worse" if (self.high < 0) != metric_named(self.metric).lower_is_better else "better"

    @property
    def verdict(self) -> str:
        """What the interval says of the first: better or worse where it is on one side of 0, and that it is so within
        the margin only; equivalent where it is on both sides, all within the margin; else no significant difference."""
        if self.low is None or self.high is None:
            return "not known: one seed"
        within = self._within(self.low, self.high)
        if not self.side:
            return f"equivalent {within}" if within else "no significant difference"
        return f"{self.side}, {within}" if within else self.side

    def _within(self, low: float, high: float) -> str:
        """`within 1 point`, where all of the interval is; else nothing."""
        metric = metric_named(self.metric)
        if self.margin is None or metric.scale * max(-low, high) > self.margin:
            return ""
        unit = "" if not metric.percent else " point" if self.margin == 1 else " points"
        return f"within {self.margin:g}{unit}"

    def cells(self) -> tuple[str, str, str]:
        """Difference, interval and verdict for people; of how many seeds, where some have no result."""
        metric = metric_named(self.metric)
        between = "" if self.low is None or self.high is None else [metric.shown(x, "+") for x in (self.low, self.high)]
        fewer = of_seeds(len(self.by_seed), self.seeds)
        return f"{metric.difference(self.difference)} {fewer}".strip(), " to ".join(between), self.verdict


ALSO = (("accuracy_norm",), ("nll_norm", "nll"))
"""What sees more than a study's own metric: accuracy by character, and the likelihood, by character where it is there:
between answers of unequal length the sum favours the shorter one."""


def every_answer(summary: Mapping[str, Any]) -> list[tuple[str, list[Answer]]]:
    """The answers by the study's metric, then by those of `ALSO` that are there."""
    own = answers(summary)
    found = {own[0].metric: own} if own else {}
    for names in ALSO:
        by_name = next(((name, by) for name in names if (by := answers(summary, name))), None)
        if by_name is not None:
            found.setdefault(*by_name)
    return [(metric_named(name).heading, answered) for name, answered in found.items()]


def answers(summary: Mapping[str, Any], metric: str | None = None) -> list[Answer]:
    """The study's questions, in their order; those whose scores are missing are left out.

    Args:
        summary: the study.json.
        metric: to answer them by; each setting's own if None.
    """
    asked = summary["study"].get("questions", ())
    return [found for question in asked if (found := _answered(summary, question, metric)) is not None]


def unanswered(summary: Mapping[str, Any]) -> list[str]:
    """The questions that the study's own metric does not answer: of one side, or of all seeds, there is no score."""
    asked = summary["study"].get("questions", ())
    return [question["ask"] for question in asked if _answered(summary, question, None) is None]


def _answered(summary: Mapping[str, Any], question: Mapping[str, Any], metric: str | None) -> Answer | None:
    settings = {setting["name"]: setting for setting in summary["settings"]}
    if any(question[side]["setting"] not in settings for side in ("first", "second")):
        return None
    first, second = (
        (settings[side["setting"]], side["form"] or settings[side["setting"]]["deployed"])
        for side in (question["first"], question["second"])
    )
    by = metric or first[0]["metric"]
    chosen_by = first[1] if question.get("same_runs") else None
    ours, theirs = _by_seed(*first, by, chosen_by), _by_seed(*second, by, chosen_by)
    paired = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    if not paired:
        return None
    names = [f"{setting['name']}, {form}" for setting, form in (first, second)]
    if chosen_by is not None:
        names[1] += " in the same runs"
    margin = _margin(question.get("margin"), by, first[0]["metric"])
    seeds = len(summary["study"].get("seeds", ()))
    return answer(question["ask"], names[0], names[1], by, paired, margin, seeds)


def answer(
    ask: str,
    first: str,
    second: str,
    metric: str,
    by_seed: Mapping[int, float],
    margin: float | None = None,
    seeds: int = 0,
) -> Answer:
    """What the differences of the seeds say; see `Answer`."""
    values = list(by_seed.values())
    return Answer(ask, first, second, metric, statistics.fmean(values), *interval(values), by_seed, margin, seeds)


def _margin(given: float | None, metric: str, own: str | None) -> float | None:
    """A question's margin is one of its study's own metric, and of others in percent if that is; other units have
    none."""
    percent = metric_named(metric).percent
    same = metric == own or (percent and own is not None and metric_named(own).percent)
    return given if given is not None and same else MARGIN if percent else None


def note(summary: Mapping[str, Any]) -> str:
    """What the intervals of a study's answers are, and how many of them there are."""
    answered = [one for _, found in every_answer(summary) for one in found if one.low is not None]
    if not answered:
        return ""
    if summary["study"].get("split_by_seed"):
        cover = (
            "the seeds, each with its own split of what is drawn from the data (test data that are given are the same "
            "for all); splits of one pool share examples, the more the larger a part of it each takes, and are too "
            "narrow for that"
        )
    else:
        split = "validation" if split_note(summary) else "test"
        cover = f"the seeds, not the sampling of the {split} data, which are the same for all seeds"
    return (
        f"Intervals of the answers: {len(answered)}; of twenty, one misses the true value by chance. They cover "
        f"{cover}. Equivalent, or within: the whole interval is within the margin, of metrics in percent 1 point "
        f"unless the question names another. {split_note(summary)}"
    ).strip()


def split_note(summary: Mapping[str, Any]) -> str:
    """A note that scores are of the data that choices were made by, as of tasks whose test labels are not public."""
    if all(setting.get("split") != "validation" for setting in summary["settings"]):
        return ""
    return "Scores are of the validation split, by which values and epochs were chosen, too: they are too high."


def _by_seed(
    setting: Mapping[str, Any], form: str | None, metric: str | None, chosen_by: str | None
) -> dict[int, float]:
    """Scores of a form in the runs of its own choice, or of that of another form."""
    by_form = (
        setting["by_form"] if chosen_by is None else setting.get("by_choice", {}).get(chosen_by, setting["by_form"])
    )
    scores = by_form.get(form, {}).get(metric, {}).get("scores", ())
    return {seed: score for seed, score in zip(setting["seeds"], scores, strict=False) if score is not None}
