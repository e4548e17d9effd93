"""The questions of a study (`aurora sweep`), answered by paired differences of its scores, and the tables of scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...data.metrics import metric_named
from ...errors import counted
from ...text_table import TextTable
from ...train.finished_run import chance_row, rows_without_model, task_chance
from ...train.recipe import task_name
from ...values import is_number
from .runs import Section, evaluations, study_scores
from .tables import count, interval, mean_and_std, of_seeds, plain

MARGIN = 1.0
"""Points of a metric in percent within which two scores count as equivalent, unless the question says otherwise."""
ALSO = (("accuracy_norm",), ("nll_norm", "nll"))
"""What sees more than a study's own metric: accuracy by character, and the likelihood, by character where it is there:
between answers of unequal length the sum favours the shorter one."""
ONLY = "the only one"
"""What is said of a value without alternatives: nothing was tuned."""


@dataclass(frozen=True)
class Answer:
    """A question of a study, answered: the first's score less the second's, paired by seed.

    Args:
        ask: the question.
        first: setting and form.
        second: setting and form.
        metric: of the scores.
        by_seed: the differences, of the seeds that both have.
        margin: within which the two count as equivalent, as the metric is shown (in points where it is in percent);
            None for no such verdict.
        seeds: how many the study has.
    """

    ask: str
    first: str
    second: str
    metric: str
    by_seed: Mapping[int, float]
    margin: float | None = None
    seeds: int = 0

    @property
    def difference(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95% interval of the difference; not numbers below two seeds."""
        return interval([*self.by_seed.values()])

    @property
    def side(self) -> str:
        """`better` or `worse`, of the first, where the interval is on one side of 0; else nothing."""
        low, high = self.interval
        if not (low > 0 or high < 0):
            return ""
        return "worse" if (high < 0) != metric_named(self.metric).lower_is_better else "better"

    @property
    def verdict(self) -> str:
        """What the interval says of the first: better or worse where it is on one side of 0, and that it is so within
        the margin only; equivalent where it is on both sides, all within the margin; else no significant difference."""
        if len(self.by_seed) < 2:
            return "not known: one seed"
        metric, (low, high), within = metric_named(self.metric), self.interval, ""
        if self.margin is not None and metric.scale * max(-low, high) <= self.margin:
            unit = "" if not metric.percent else " point" if self.margin == 1 else " points"
            within = f"within {self.margin:g}{unit}"
        if not self.side:
            return f"equivalent {within}" if within else "no significant difference"
        return f"{self.side}, {within}" if within else self.side

    def cells(self) -> tuple[str, str, str]:
        """Difference, interval and verdict for people; of how many seeds, where some have no result."""
        metric = metric_named(self.metric)
        between = " to ".join(metric.shown(end, "+") for end in self.interval) if len(self.by_seed) > 1 else ""
        fewer = of_seeds(len(self.by_seed), self.seeds)
        return f"{metric.difference(self.difference)} {fewer}".strip(), between, self.verdict


def answers(summary: Mapping[str, Any], metric: str | None = None, without: int | None = None) -> list[Answer]:
    """The study's questions, in their order; those whose scores are missing are left out.

    Args:
        summary: the study.json.
        metric: to answer them by; each setting's own if None.
        without: a seed that is left out.
    """
    scores = study_scores(summary).dropna(subset="score")
    keys = ["setting", "choice", "form", "metric"]
    by_seed = scores[scores["seed"] != without].pivot(index="seed", columns=keys, values="score")
    settings = {setting["name"]: setting for setting in summary["settings"]}
    seeds = [seed for seed in summary["study"].get("seeds", ()) if seed != without]
    found = []
    for question in summary["study"].get("questions", ()):
        if any(question[side]["setting"] not in settings for side in ("first", "second")):
            continue
        sides = [
            (settings[side["setting"]], side["form"] or settings[side["setting"]]["deployed"])
            for side in (question["first"], question["second"])
        ]
        own = sides[0][0]["metric"]
        by, choice = metric or own, sides[0][1] if question.get("same_runs") else ""
        ours, theirs = (
            by_seed.get((one["name"], choice if choice in one.get("by_choice", ()) else "", form, by))
            for one, form in sides
        )
        if ours is None or theirs is None or (difference := (ours - theirs).dropna()).empty:
            continue
        percent = metric_named(by).percent
        same = by == own or (percent and metric_named(own).percent)  # a margin is one of the study's own metric
        given = question.get("margin")
        margin = given if given is not None and same else MARGIN if percent else None
        first, second = (f"{one['name']}, {form}" for one, form in sides)
        second += " in the same runs" if choice else ""
        found.append(Answer(question["ask"], first, second, by, difference.to_dict(), margin, len(seeds)))
    return found


def every_answer(summary: Mapping[str, Any]) -> list[tuple[str, list[Answer]]]:
    """The answers by the study's metric, then by those of `ALSO` that are there."""
    own = answers(summary)
    found = {own[0].metric: own} if own else {}
    for names in ALSO:
        by_name = next(((name, by) for name in names if (by := answers(summary, name))), None)
        if by_name is not None:
            found.setdefault(*by_name)
    return [(metric_named(name).heading, answered) for name, answered in found.items()]


# ---------------------------------------------------------------- tables


def section_tables(section: Section, *, full: bool = False) -> list[TextTable]:
    """The tables of a study, or that of the scores of other runs: mean and standard deviation over the seeds.

    Args:
        section: what they are of.
        full: see `study_tables`.
    """
    if section.study is not None:
        return study_tables(section.study, full=full)
    scores = section.scores[section.scores["test_set"] == ""].assign(most_params=section.scores["params"])
    table = _scores_table(section.title, scores, section.results[0]["metric"]["split"], full=full)
    metrics = list(map(metric_named, scores["metric"].unique()))
    for name, *cells in rows_without_model(section.results[0], metrics):
        table.rows.append([name, "", "", *cells, *(["", ""] if full else [])])
    return [table]


def study_tables(summary: Mapping[str, Any], *, full: bool = False) -> list[TextTable]:
    """The answers of a study by each metric, then what was chosen for each setting and how it scored on test data, or
    on validation data where a task has no other: mean and standard deviation over the seeds.

    Args:
        summary: the study.json.
        full: as for a page, with what a terminal has no room for: what is compared, seeds and seconds.
    """
    study, scores, found = summary["study"], study_scores(summary), []
    for metric, answered in every_answer(summary):
        compared = ["first", "second"] if full else []
        headers = ["question", *compared, f"{metric}, difference", "95% interval", "first vs second"]
        table = TextTable(f"{metric}, first less second", headers, align="l" * (1 + len(compared)) + "rrl")
        for one in answered:
            asked = [one.ask, one.first, one.second] if full else [f"{one.ask}\n({one.first}, less {one.second})"]
            table.rows.append([*asked, *one.cells()])
        found.append(table)
    if found:
        found[-1].note = note(summary)
    settings = {setting["name"]: setting for setting in summary["settings"]}
    runs = counted(study["tuning"]["budget"], "run")
    table = _scores_table(
        f"{study['name']}: {runs} to tune each",
        scores[scores["choice"] == ""],
        "validation" if split_note(summary) else "",
        len(study["seeds"]),
        lambda name, form: chosen_values(summary, settings[name], form),
        full=full,
    )
    metrics = list(scores["metric"].unique())
    if guessing := _chance(summary, metrics):
        name, *cells = chance_row(guessing, map(metric_named, metrics))
        table.rows.append([name, "", "", "", *cells, *(["", ""] if full else [])])
    table.note = " ".join(filter(None, (split_note(summary), missing_note(summary), tuning_note(summary))))
    return [*found, table]


def _scores_table(
    title: str,
    scores: pd.DataFrame,
    split: str = "",
    wanted: int = 0,
    chosen: Callable[[str, str], str] | None = None,
    *,
    full: bool,
) -> TextTable:
    """A row for each setting and form.

    Args:
        title: above it.
        scores: of one test set and one choice.
        split: what the scores are of, where it is to be said.
        wanted: how many seeds there were to be; as many as there are if 0.
        chosen: gives the tuned values of a setting and form.
        full: with seeds and seconds, and the names in each row.
    """
    seeds, metrics = wanted or scores["seed"].nunique(), scores["metric"].unique()
    spread = "; mean ± standard deviation" if seeds > 1 else ""
    title = f"{title}, {counted(seeds, 'seed')}{spread}{f'; {split} split' if split else ''}"
    heads = ["setting", "params", *(["chosen"] if chosen else []), "form"]
    more = ["seeds", "training s"] if full else []
    table = TextTable(title, [*heads, *(metric_named(name).column for name in metrics), *more])
    table.align = "lrvlr" if chosen else "lrlr"
    for name, of_setting in scores.groupby("setting", sort=False):
        before = None
        params = of_setting["params"].min(), of_setting["most_params"].max()
        for form, of_form in of_setting.groupby("form", sort=False):
            about = [str(name), "" if pd.isna(params[0]) else count(*params)] if full or before is None else ["", ""]
            values = chosen(str(name), str(form)) if chosen else ""
            cells = [*about, *(["" if values == before and not full else values] if chosen else []), str(form)]
            for metric in metrics:
                values_of = of_form.loc[of_form["metric"] == metric, "score"].tolist()
                cells.append(mean_and_std(values_of, metric_named(metric).shown, wanted) if values_of else "")
            seconds = of_setting.drop_duplicates("seed")["train_s"]
            table.rows.append([*cells, *([str(len(seconds)), f"{statistics.fmean(seconds):.0f}"] if full else [])])
            before = values
    return table


def _chance(summary: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, float]:
    """The metrics of uniform guessing, by which a task with accuracy is judged."""
    recorded: dict[str, float] = next((one["chance"] for one in summary["settings"] if one.get("chance")), {})
    guessed = recorded or task_chance(str(task_name(summary["study"].get("base", {}))))
    return {name: value for name, value in guessed.items() if name in metrics and "accuracy" in metrics}


def note(summary: Mapping[str, Any]) -> str:
    """What the intervals of a study's answers are, and how many of them there are."""
    answered = [one for _, found in every_answer(summary) for one in found if len(one.by_seed) > 1]
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


# ---------------------------------------------------------------- what was tuned


def chosen_values(summary: Mapping[str, Any], setting: Mapping[str, Any], form: str) -> str:
    """What was chosen for a setting, or for a form with a choice of its own: `lr 0.005`; `lowest` or `highest` where it
    is at the edge of the offer."""
    chosen = setting.get("chosen_by_form", {}).get(form, setting["chosen"])
    return _values(_space(summary, setting["name"]), chosen)


def tuning_note(summary: Mapping[str, Any]) -> str:
    """How many choices are at the edge of what was offered, and which settings were offered something else, and why."""
    settings = summary["settings"]
    at_edge = [
        one
        for one in settings
        if any(
            _edge(_space(summary, one["name"]).get(field), value) not in ("", ONLY)
            for chosen in (one.get("chosen_by_form") or {"": one["chosen"]}).values()
            for field, value in chosen.items()
        )
    ]
    notes = []
    if (finalists := summary["study"]["tuning"].get("finalists", 1)) > 1:
        notes.append(
            f"The best {finalists} values on the tuned seed, of each form with a choice of its own, were run over all "
            "seeds; of a form's, the best mean validation score decides."
        )
    if at_edge:
        notes.append(
            f"The choice is at the edge of the grid, so that another value may be better, for {len(at_edge)} of "
            f"{counted(len(settings), 'setting')}."
        )
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in summary["study"].get("settings", ()):
        if one.get("space"):
            reason = one.get("why") or "the reason is not recorded"
            by_reason.setdefault((_offered(one["space"]), reason), []).append(one["name"])
    own = [f"{', '.join(names)} ({grid}): {why}" for (grid, why), names in by_reason.items()]
    notes += [f"Grids of their own: {'; '.join(own)}."] if own else []
    return " ".join(notes)


def missing_note(summary: Mapping[str, Any]) -> str:
    """What a study was to have and has not: settings and answers without a result, the tuning runs that gave none, and
    the finalists with a run that gave none; nothing where all is there."""
    there = {one["name"]: one for one in summary["settings"]}
    tuning = summary["study"]["tuning"]
    wanted = [one["name"] for one in summary["study"].get("settings", ())] or list(there)
    without = [name for name in wanted if name not in there or not there[name]["by_form"]]
    without += [
        f"{one['name']}, {form}"
        for one in there.values()
        for form in one.get("chosen_by_form", ())
        if one["by_form"] and form not in one["by_form"]
    ]
    failed = sum(trial["validation"] is None for one in there.values() for trial in one["trials"])
    failed += tuning["budget"] * sum(name not in there for name in wanted)  # it has no trial with a score
    answered = [one.ask for one in answers(summary)]
    asked = [one["ask"] for one in summary["study"].get("questions", ()) if one["ask"] not in answered]
    notes = [f"No result: {', '.join(without)}"] if without else []
    notes += [f"Not answered: {'; '.join(asked)}"] if asked else []
    notes += [f"{counted(failed, 'tuning run')} gave no score"] if failed else []
    excluded = [
        f"{setting['name']}, {_values({}, one['values'])} ({one['why']})"
        for setting in there.values()
        for one in setting.get("excluded", ())
    ]
    notes += [f"Finalists that were left out: {'; '.join(excluded)}"] if excluded else []
    return " ".join(f"{one}." for one in notes)


def _values(space: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    shown = []
    for field, value in chosen.items():
        edge = _edge(space.get(field), value)
        shown.append(f"{_field(field)} {plain(value)}{f', {edge}' if edge else ''}")
    return "; ".join(shown)


def _space(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What was offered to a setting."""
    study = summary["study"]
    own = next((one.get("space") for one in study.get("settings", ()) if one["name"] == name), None)
    space: Mapping[str, Any] = own or study["tuning"].get("space", {})
    return space


def _edge(offered: Any, value: Any) -> str:
    """Where a value is at the end of a list of numbers."""
    if not isinstance(offered, list) or not all(map(is_number, [*offered, value])):
        return ""
    if len(offered) == 1:
        return ONLY
    return "lowest" if value == min(offered) else "highest" if value == max(offered) else ""


def _field(name: str) -> str:
    return name.rpartition(".")[2].replace("learning_rate", "lr")


def _offered(space: Mapping[str, Any]) -> str:
    """The values of each field: `lr 2e-05, 5e-05`."""
    fields = []
    for field, values in space.items():
        listed = values if isinstance(values, list) else [f"{plain(values['low'])} to {plain(values['high'])}"]
        fields.append(f"{_field(field)} {', '.join(map(plain, listed))}")
    return "; ".join(fields)


# ---------------------------------------------------------------- convergence


def convergence_note(scores: pd.DataFrame) -> str:
    """How many final runs still gain more in their last epoch than the seeds of their setting are apart.

    The score is that by which the best epoch is chosen, on validation data. Where a run is evaluated several times in
    an epoch, the gain is that over the last whole one; where it is evaluated every few epochs, that between the last
    two evaluations, per epoch. The spread is the standard deviation of the last scores over the seeds.

    Args:
        scores: see `measured`.
    """
    names = scores.groupby("setting")["selected_by"].first()
    rows = []
    for (setting, _), of_run in evaluations(scores).dropna(subset="validation").groupby(["setting", "seed"]):
        last = of_run.iloc[-1]
        before = of_run[last["epoch"] - of_run["epoch"] > 0.99]  # epochs that are reckoned from steps are a little off
        if len(before):
            start, sign = before.iloc[-1], metric_named(names[setting]).sign
            gain = sign * (last["validation"] - start["validation"]) / max(last["epoch"] - start["epoch"], 1)
            rows.append({"setting": setting, "metric": names[setting], "gain": gain, "last": last["validation"]})
    gains = pd.DataFrame(rows, columns=["setting", "metric", "gain", "last"])
    gains = gains.assign(spread=gains.groupby("setting")["last"].transform("std")).dropna()  # one seed has none
    if gains.empty:
        return (
            "Whether the runs have converged is not known: that needs the epochs of two seeds, each evaluated at least "
            "twice, an epoch apart."
        )
    rising = int((gains["gain"] > gains["spread"]).sum())
    medians = []
    for name, of_metric in gains.groupby("metric", sort=False)[["gain", "spread"]].median().iterrows():
        metric = metric_named(str(name))
        points = " points" * metric.percent
        gain, spread = metric.shown(of_metric["gain"]), metric.shown(of_metric["spread"])
        medians.append(f"{gain}{points} of {metric.title}, the spread {spread}")
    return (
        f"{f'Not converged: {rising}' if rising else 'Converged: none'} of {counted(len(gains), 'final run')} still "
        f"{'gain' if rising else 'gains'} more in the last epoch than the standard deviation between the seeds of the "
        f"setting, in the validation score of the deployed form. The median gain is {'; '.join(medians)}."
    )
