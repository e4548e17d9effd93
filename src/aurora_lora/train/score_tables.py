"""The scores of a run as rows and tables for people, and what is printed at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from ..data.metrics import Metric, in_order, metric_named
from ..errors import counted
from ..forms import MERGED, form_named
from ..text_table import TextTable
from .results import Result, Scores, chance_of, most_frequent_of, test_sets

MOST_LONG = 3
"""Metrics whose titles, written out, have room beside each other in a table."""


def examples_scored(result: Result) -> str:
    """How many examples the scores of a result are over, and of which split, for people."""
    metric, sets = result["metric"], test_sets(result)
    if len(sets) > 1:
        return f"mean of {len(sets)} test sets"
    if metric["split"] in metric["examples"] and "by_test_set" not in metric:
        return counted(metric["examples"][metric["split"]], metric["split"] + " example")
    return f"{counted(metric['examples'][sets[0]], 'example')} of {sets[0]}"


def chance_row(chance: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    """The row of uniform guessing, or of a constant for numbers, in a table of these metrics."""
    return _row("the training mean" if "mse" in chance else "uniform guessing", chance, metrics)


def rows_without_model(result: Mapping[str, Any], metrics: Sequence[Metric]) -> list[list[str]]:
    """The rows of what takes no model in a table of these metrics: guessing, and always the most frequent class."""
    chance, always = chance_of(result), most_frequent_of(result)
    rows = [chance_row(chance, metrics)] if chance else []
    return [*rows, *([_row("the most frequent class", always, metrics)] if always else [])]


def _row(name: str, scores: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    return [name, *(one.shown(scores[one.name]) if one.name in scores else "" for one in metrics)]


def score_table(method: str, scores: Scores, deployed: str | None) -> TextTable:
    """The scores of a method's forms, a row for each, which starts with the form's name; a method of a single form has
    the method's name there. The `deployed` form is marked, if there are several."""
    metrics = in_order(next(iter(scores.values())))
    rows: list[Sequence[str]] = []
    for form, values in scores.items():
        name = method.replace("-", " ") if form == MERGED else form_named(form).title
        rows.append(_row(f"{name}, deployed" if form == deployed and len(scores) > 1 else name, values, metrics))
    headings = [metric.heading if len(metrics) <= MOST_LONG else metric.column for metric in metrics]
    return TextTable("", ["form", *headings], rows)


def scores_of(result: Result) -> TextTable:
    """The scores of a run: of the base model before the training, where it was scored, and of every form."""
    table = score_table(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if (before := result["metric"].get("before")) is not None:
        table.rows.insert(0, _row("before the training", before, in_order(before)))
    return table


def run_table(result: Result, reference: Result | None) -> TextTable:
    """The scores of a run beside those of its reference and of what takes no model."""
    table = scores_of(result)
    if reference is not None:
        table.rows.extend(score_table(reference["method"], reference["metric"]["by_form"], None).rows)
    table.rows.extend(rows_without_model(result, in_order(next(iter(result["metric"]["by_form"].values())))))
    return table


# ---------------------------------------------------------------- printed


def print_result(console: Console, result: Result, reference: Result | None) -> None:
    """Scores of every form beside the reference, answers, parameter counts, and how it was trained."""
    console.print(replace(run_table(result, reference), title=f"{result['task']}: {examples_scored(result)}"))
    by_test_set = result["metric"].get("by_test_set", {})
    if len(by_test_set) > 1:
        metric = metric_named(result["metric"]["name"])
        forms = list(next(iter(by_test_set.values())))
        headers = ["test set", "examples", *(form.replace(MERGED, result["method"]) for form in forms)]
        table = TextTable(metric.heading, headers)
        for name, scores in by_test_set.items():
            cells = [metric.shown(scores[form][metric.name]) for form in forms]
            table.rows.append([name, f"{result['metric']['examples'][name]:,}", *cells])
        console.print(table)
    lines = [parameters(result)]
    for number, one in enumerate(result.get("samples", ()), start=1):
        lines.append(f"held-out conversation {number}: {_short(one['prompt'])}")
        lines += [f"  {name:<8}  {_short(one[name])}" for name in ("expected", "before", "after")]
    chosen, took = result["metric"]["selected_by"], result["time"]
    lines.append(
        f"best epoch {chosen['epoch']:g} of {result['recipe']['training']['epochs']}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} examples/s"
    )
    for line in lines:
        console.print(line, highlight=False)


def parameters(result: Result) -> str:
    """A line about what was trained."""
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"


def rate(value: float) -> str:
    """A number a second, for people: of a large model on a CPU it is below 1."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"
