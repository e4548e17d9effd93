"""The tables of a study (`aurora sweep`), from its study.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...files import NOT_FINITE
from ...tasks.metrics import metric_named
from ...text_table import TextTable
from .groups import interval, plain
from .tables import count, left_out


def study_tables(summary: Mapping[str, Any], *, full: bool = False) -> list[TextTable]:
    """The answers of a study by each metric, then what was chosen for each setting and how it scored on test data: mean
    and standard deviation over the seeds.

    Args:
        summary: the study.json.
        full: as for a page, with what a terminal has no room for: what is compared, seeds and seconds.
    """
    study, metrics, found = summary["study"], metric_names(summary), []
    for metric, answered in every_answer(summary):
        compared = ["first", "second"] if full else []
        headers = ["question", *compared, f"{metric}, difference", "95% interval", "first vs second"]
        table = TextTable(f"{metric}, first less second", headers, align="l" * (1 + len(compared)) + "rrl")
        for one in answered:
            table.rows.append([one.ask, *([one.first, one.second] if full else []), *one.cells()])
        found.append(table)
    title = f"{study['name']}: {study['tuning']['budget']} runs to tune each, {len(study['seeds'])} seeds"
    more = ["seeds", "training s"] if full else []
    heads = [metric_named(metric).column for metric in metrics]
    table = TextTable(title, ["setting", "params", "chosen", "form", *heads, *more], align="lrllr")
    for setting in summary["settings"]:
        about = [setting["name"], trained_parameters(setting), chosen_values(summary, setting)]
        seconds = f"{statistics.fmean(setting['train_s']):.0f}" if setting["train_s"] else ""
        for form, scores in setting["by_form"].items():
            shown = [mean_and_std(metric, scores.get(metric)) for metric in metrics]
            table.rows.append([*about, form, *shown, *([str(len(setting["seeds"])), seconds] if full else [])])
            about = about if full else [""] * len(about)
    return [*found, table]


def chosen_values(summary: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    """What was chosen for a setting, `lr 0.005`; `lowest` or `highest` where it is at the edge of the offer."""
    study = summary["study"]
    own = next((one.get("space") for one in study.get("settings", ()) if one["name"] == setting["name"]), None)
    space = own or study["tuning"].get("space", {})
    shown = []
    for field, value in setting["chosen"].items():
        name = field.rpartition(".")[2].replace("learning_rate", "lr")
        offered = space.get(field)
        edge = ""
        if isinstance(offered, list) and len(offered) > 2 and not isinstance(value, (str, bool)):
            edge = ", lowest" if value == min(offered) else ", highest" if value == max(offered) else ""
        shown.append(f"{name} {plain(value)}{edge}")
    return "; ".join(shown)


@dataclass(frozen=True)
class Answer:
    """A question of a study, answered: the first's score less the second's, paired by seed.

    Args:
        ask: the question.
        first, second: setting and form.
        metric: of the scores.
        difference: mean over the seeds.
        low, high: its 95% interval, of Student's t over the paired differences; None below two seeds.
        seeds: how many both have.
    """

    ask: str
    first: str
    second: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says of the first: better, worse, or no significant difference (at the 5% level)."""
        if self.low is None or self.high is None:
            return "not known: one seed"
        if self.low <= 0 <= self.high:
            return "no significant difference"
        return "worse" if (self.high < 0) != metric_named(self.metric).lower_is_better else "better"

    def cells(self) -> tuple[str, str, str]:
        """Difference, interval and verdict for people."""
        metric = metric_named(self.metric)
        between = "" if self.low is None or self.high is None else [metric.shown(x, "+") for x in (self.low, self.high)]
        return metric.shown(self.difference, "+"), " to ".join(between), self.verdict


def every_answer(summary: Mapping[str, Any]) -> list[tuple[str, list[Answer]]]:
    """The answers by the study's metric, then by the negative log-likelihood, which sees more than accuracy does."""
    by_metric = answers(summary), answers(summary, "nll")
    return [(metric_named(found[0].metric).heading, found) for found in by_metric if found]


def answers(summary: Mapping[str, Any], metric: str | None = None) -> list[Answer]:
    """The study's questions, in their order; those whose scores are missing are left out.

    Args:
        summary: the study.json.
        metric: to answer them by; each setting's own if None.
    """
    settings = {setting["name"]: setting for setting in summary["settings"]}
    found = []
    for question in summary["study"].get("questions", ()):
        if any(question[side]["setting"] not in settings for side in ("first", "second")):
            continue
        first, second = (
            (settings[side["setting"]], side["form"] or settings[side["setting"]]["deployed"])
            for side in (question["first"], question["second"])
        )
        by = metric or first[0]["metric"]
        ours, theirs = _by_seed(*first, by), _by_seed(*second, by)
        paired = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if paired:
            names = [f"{setting['name']}, {form}" for setting, form in (first, second)]
            mean, (low, high) = statistics.fmean(paired), interval(paired)
            found.append(Answer(question["ask"], names[0], names[1], by, mean, low, high, len(paired)))
    return found


def _by_seed(setting: Mapping[str, Any], form: str | None, metric: str | None) -> dict[int, float]:
    scores = setting["by_form"].get(form, {}).get(metric, {}).get("scores", ())
    return {seed: score for seed, score in zip(setting["seeds"], scores, strict=False) if score is not None}


def trained_parameters(setting: Mapping[str, Any]) -> str:
    """Trained outside the head."""
    if setting["params"] is None:
        return ""
    least = setting["params"]["adapter"]
    return count(least, setting.get("most_params") or least)  # older summaries have the first seed's alone


def mean_and_std(metric: str, score: Mapping[str, Any] | None) -> str:
    """`83.1 ± 0.4`."""
    if score is None or score["mean"] is None:
        return NOT_FINITE
    show = metric_named(metric).shown
    mean = show(score["mean"])
    shown = mean if score["std"] is None else f"{mean} ± {show(score['std'])}"
    return " ".join(filter(None, (shown, left_out(score["scores"]))))


def metric_names(summary: Mapping[str, Any]) -> list[str]:
    found = [name for s in summary["settings"] for scores in s["by_form"].values() for name in scores]
    return list(dict.fromkeys(found))
