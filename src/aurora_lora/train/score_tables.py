"""The scores of a run as rows and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.metrics import Metric, in_order
from ..errors import counted
from ..forms import MERGED, form_named
from ..text_table import TextTable, column_widths
from .results import Result, Scores, chance_of, most_frequent_of, test_sets

if TYPE_CHECKING:
    from rich.table import Table

MOST_LONG = 3
"""Metrics whose titles, written out, have room beside each other in a table."""


def examples_scored(result: Result) -> str:
    """How many examples the scores of a result are over, and of which split, for people."""
    metric = result["metric"]
    if "examples" not in metric:  # of an earlier version, with the size in the recipe only
        return counted(result["recipe"]["task"]["test_size"], metric["split"] + " example")
    sets = test_sets(result)
    if len(sets) > 1:
        return f"mean of {len(sets)} test sets"
    if metric["split"] in metric["examples"] and "by_test_set" not in metric:
        return counted(metric["examples"][metric["split"]], metric["split"] + " example")
    return f"{counted(metric['examples'][sets[0]], 'example')} of {sets[0]}"


def chance_row(chance: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    """The row of uniform guessing, or of a constant for numbers, in a table of these metrics."""
    return _row("the training mean" if "mse" in chance else "uniform guessing", chance, metrics)


def rows_without_model(result: Mapping[str, Any], metrics: Sequence[Metric]) -> list[list[str]]:
    """The rows of what takes no model in a table of these metrics: that of `chance_row`, and of the most frequent class
    where there is a score of it."""
    chance, always = chance_of(result), most_frequent_of(result)
    rows = [chance_row(chance, metrics)] if chance else []
    return [*rows, *([_row("the most frequent class", always, metrics)] if always else [])]


def _row(name: str, scores: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    return [name, *(one.shown(scores[one.name]) if one.name in scores else "" for one in metrics)]


def score_table(method: str, scores: Scores, deployed: str | None) -> TextTable:
    """The scores of a method's forms, a row for each, which starts with the form's name.

    Args:
        method: its name, which stands for its only form.
        scores: as in result.json.
        deployed: the form to mark as such, if there are several.
    """
    metrics = in_order(next(iter(scores.values())))
    rows: list[Sequence[str]] = []
    for form, values in scores.items():
        name = method.replace("-", " ") if form == MERGED else form_named(form).title
        shown = [metric.shown(values[metric.name]) for metric in metrics]
        rows.append([f"{name}, deployed" if form == deployed and len(scores) > 1 else name, *shown])
    headings = [metric.heading if len(metrics) <= MOST_LONG else metric.column for metric in metrics]
    return TextTable("", ["form", *headings], rows)


def scores_of(result: Result) -> TextTable:
    """The scores of a run: of the base model before the training, where it was scored, and of every form."""
    table = score_table(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if (before := result["metric"].get("before")) is not None:
        shown = (metric.shown(before[metric.name]) for metric in in_order(before))
        table.rows.insert(0, ["before the training", *shown])
    return table


def run_table(result: Result, reference: Result | None) -> TextTable:
    """The scores of a run beside those of its reference and of what takes no model."""
    table = scores_of(result)
    if reference is not None:
        table.rows.extend(score_table(reference["method"], reference["metric"]["by_form"], None).rows)
    table.rows.extend(rows_without_model(result, in_order(next(iter(result["metric"]["by_form"].values())))))
    return table


def shown_table(title: str, table: TextTable, width: int = 80) -> Table:
    """A table of scores for a terminal. Where it is too wide, headings are broken at their spaces."""
    from rich.table import Table

    columns = [*zip(table.headers, *table.rows, strict=True)]
    spaces = 1
    widths = column_widths(columns, width - 3 * len(columns) - 1)
    if widths[0] < max(map(len, columns[0])):  # without spaces beside the borders, no name need be broken
        spaces = 0
        widths = column_widths(columns, width - len(columns) - 1)
    shown = Table(title=title, title_justify="left", padding=(0, spaces))
    for number, (header, width) in enumerate(zip(table.headers, widths, strict=True)):
        shown.add_column(header, justify="right" if number else "left", width=width)
    for name, *values in table.rows:
        shown.add_row(name, *values, style="bold" if name.endswith("deployed") else None)
    return shown
