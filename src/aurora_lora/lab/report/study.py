"""The tables of a study (`aurora sweep`), from its study.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.metrics import metric_named
from ...errors import counted
from ...files import NOT_FINITE
from ...text_table import TextTable
from ...train.recipe import task_name
from ...train.results import chance_row, task_chance
from ...values import is_number
from .answers import every_answer, note, split_note, unanswered
from .groups import Group, plain
from .tables import count, finite, mean_and_std, of_seeds

ONLY = "the only one"
"""What is said of a value without alternatives: nothing was tuned."""


def study_tables(summary: Mapping[str, Any], *, full: bool = False) -> list[TextTable]:
    """The answers of a study by each metric, then what was chosen for each setting and how it scored on test data, or
    on validation data where a task has no other: mean and standard deviation over the seeds.

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
            asked = [one.ask, one.first, one.second] if full else [f"{one.ask}\n({one.first}, less {one.second})"]
            table.rows.append([*asked, *one.cells()])
        found.append(table)
    if found:
        found[-1].note = note(summary)
    runs, seeds = counted(study["tuning"]["budget"], "run"), counted(len(study["seeds"]), "seed")
    spread = "; mean ± standard deviation" if len(study["seeds"]) > 1 else ""
    split = "; validation split" if split_note(summary) else ""
    title = f"{study['name']}: {runs} to tune each, {seeds}{spread}{split}"
    more = ["seeds", "training s"] if full else []
    heads = [metric_named(metric).column for metric in metrics]
    table = TextTable(title, ["setting", "params", "chosen", "form", *heads, *more], align="lrvlr")
    for setting in summary["settings"]:
        about = [setting["name"], trained_parameters(setting)]
        seconds = f"{statistics.fmean(setting['train_s']):.0f}" if setting["train_s"] else ""
        before = ""
        for form, scores in setting["by_form"].items():
            values = chosen_values(summary, setting, form)
            shown = [_score(metric, scores.get(metric), len(study["seeds"])) for metric in metrics]
            given = "" if values == before and not full else values
            table.rows.append([*about, given, form, *shown, *([str(len(setting["seeds"])), seconds] if full else [])])
            about, before = about if full else [""] * len(about), values
    if guessing := chance(summary):
        name, *cells = chance_row(guessing, map(metric_named, metrics))
        table.rows.append([name, "", "", "", *cells, *(["", ""] if full else [])])
    table.note = " ".join(filter(None, (split_note(summary), missing_note(summary), tuning_note(summary))))
    return [*found, table]


def chosen_values(summary: Mapping[str, Any], setting: Mapping[str, Any], form: str | None = None) -> str:
    """What was chosen for a setting, `lr 0.005`; `lowest` or `highest` where it is at the edge of the offer.

    Args:
        summary: the study.json.
        setting: of it.
        form: whose own choice it is, in a study with `each_form`; if None, those that differ are named by form.
    """
    space, by_form = _space(summary, setting["name"]), setting.get("chosen_by_form", {})
    if form is not None or not by_form:
        return _values(space, by_form.get(form, setting["chosen"]))
    shown = {name: _values(space, chosen) for name, chosen in by_form.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{name}: {values}" for name, values in shown.items())


def _values(space: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    shown = []
    for field, value in chosen.items():
        edge = _edge(space.get(field), value)
        shown.append(f"{_field(field)} {plain(value)}{f', {edge}' if edge else ''}")
    return "; ".join(shown)


def chance(summary: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of uniform guessing; summaries of earlier versions do not say, but their task may."""
    recorded: dict[str, float] = next((one["chance"] for one in summary["settings"] if one.get("chance")), {})
    there = metric_names(summary)
    guessed = recorded or task_chance(str(task_name(summary["study"].get("base", {}))))
    return {name: value for name, value in guessed.items() if name in there and "accuracy" in there}


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
    notes = [f"No result: {', '.join(without)}"] if without else []
    notes += [f"Not answered: {'; '.join(asked)}"] if (asked := unanswered(summary)) else []
    notes += [f"{counted(failed, 'tuning run')} gave no score"] if failed else []
    excluded = [
        f"{setting['name']}, {_values({}, one['values'])} ({one['why']})"
        for setting in there.values()
        for one in setting.get("excluded", ())
    ]
    notes += [f"Finalists that were left out: {'; '.join(excluded)}"] if excluded else []
    return " ".join(f"{one}." for one in notes)


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


def trained_parameters(setting: Mapping[str, Any]) -> str:
    """Parameters that a setting trains outside the head, for people."""
    if setting["params"] is None:
        return ""
    least = setting["params"]["adapter"]
    return count(least, setting.get("most_params") or least)  # older summaries have the first seed's alone


def _score(metric: str, score: Mapping[str, Any] | None, seeds: int) -> str:
    """`83.1 ± 0.4`; of how many seeds, where some have no result. Nothing for a metric that the setting has not."""
    if score is None:
        return ""
    if score["mean"] is None:
        return NOT_FINITE
    show = metric_named(metric).shown
    there = [one for place, one in enumerate(score["scores"]) if place not in score.get("missing", ())]
    shown = mean_and_std(show(score["mean"]), None if score["std"] is None else show(score["std"]), there)
    return f"{shown} {of_seeds(len(there), seeds)}".strip()


def metric_names(summary: Mapping[str, Any]) -> list[str]:
    found = [name for s in summary["settings"] for scores in s["by_form"].values() for name in scores]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- convergence


ROUNDING = 0.01
"""How far an epoch that is reckoned from steps may be off."""


def convergence_note(found: Sequence[Group]) -> str:
    """How many final runs still gain more in their last epoch than the seeds of their setting are apart.

    The score is that by which the best epoch is chosen, on validation data. Where a run is evaluated several times in
    an epoch, the gain is that over the last whole one; where it is evaluated every few epochs, that between the last
    two evaluations, per epoch. The spread is the standard deviation of the last scores over the seeds.
    """
    by_metric: dict[str, list[tuple[float, float]]] = {}
    for group in found:
        for gain, spread in _gains(group):
            by_metric.setdefault(group.selected_by, []).append((gain, spread))
    if not by_metric:
        return (
            "Whether the runs have converged is not known: that needs the epochs of two seeds, each evaluated at least "
            "twice, an epoch apart."
        )
    pairs = [pair for found_pairs in by_metric.values() for pair in found_pairs]
    rising = sum(gain > spread for gain, spread in pairs)
    medians = []
    for name, of_metric in by_metric.items():
        metric = metric_named(name)
        gain, spread = (statistics.median(values) for values in zip(*of_metric, strict=True))
        points = " points" * metric.percent
        medians.append(f"{metric.shown(gain)}{points} of {metric.title}, the spread {metric.shown(spread)}")
    return (
        f"{f'Not converged: {rising}' if rising else 'Converged: none'} of {counted(len(pairs), 'final run')} still "
        f"{'gain' if rising else 'gains'} more in the last epoch than the standard deviation between the seeds of the "
        f"setting, in the validation score of the deployed form. The median gain is {'; '.join(medians)}."
    )


def _gains(group: Group) -> list[tuple[float, float]]:
    """What the last epoch of each run of a setting with several seeds gained, and the spread."""
    sign = metric_named(group.selected_by).sign
    last = [ends for run in group.runs if (ends := _last_epoch(_scored(run, group.selected_by))) is not None]
    if len(last) < 2:
        return []
    spread = statistics.stdev(score for _, (_, score) in last)
    return [(sign * (after - before) / max(end - start, 1), spread) for (start, before), (end, after) in last]


def _last_epoch(
    entries: Sequence[tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The last evaluation, after the last one that is an epoch before it at least."""
    before = [entry for entry in entries if entries[-1][0] - entry[0] > 1 - ROUNDING]
    return (before[-1], entries[-1]) if before else None


def _scored(run: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """Epoch and validation score of each evaluation that gave a number."""
    points = [(entry["epoch"], entry["validation"].get(metric)) for entry in run["epochs"]]
    return [(epoch, score) for epoch, score in points if finite([score])]
