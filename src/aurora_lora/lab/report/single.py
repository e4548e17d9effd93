"""What the report of a single run has beside its scores: each class, the confusion of classes, mistakes, the loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.metrics import metric_named
from ...errors import abridged
from ...field_errors import validated
from ...files import read_json, reading
from ...forms import CALIBRATED
from ...text_table import TextTable
from ...train.publish import MISTAKES, REFERENCE
from ...train.result_schema import Mistakes
from .figures import FORM_STYLES, fitted, panels
from .runs import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS, MOST_COLUMNS, LETTERS = 20, 12, 100
"""Classes of a table, and answers beside each other; of the text of a mistake in a terminal."""


def single_tables(section: Section, *, full: bool = False) -> list[TextTable]:
    """How each class was told, which was taken for which, and examples that got another answer than their label; none
    of a study, or of several runs but one and its reference.

    Args:
        section: of the report.
        full: as for a page, with what a terminal has no room for.
    """
    runs = [run for run in section.runs.itertuples() if run.folder.name != REFERENCE]
    if len(runs) > 1 or section.study is not None:
        return []
    tables = _classes(runs[0].result, full) if "by_class" in runs[0].result else []
    return [*tables, *_mistakes(runs[0].folder / MISTAKES, full)]


def _classes(result: dict[str, Any], full: bool) -> list[TextTable]:
    by_class, confusion = result["by_class"], result.get("confusion", {})
    least = sorted(by_class, key=lambda name: by_class[name]["f1"])[:MOST_ROWS]
    title = f"by class, {result['metric']['selected_by']['form']} form"
    title += f": the {MOST_ROWS} with the least F1 of {len(by_class):,}" if len(by_class) > MOST_ROWS else ""
    table = TextTable(title, ["class", "examples", "precision %", "recall %", "F1 %", "taken for"], align="lrrrrl")
    for name in (name for name in by_class if name in least):
        shares = [f"{100 * by_class[name][key]:.1f}" for key in ("precision", "recall", "f1")]
        others = sorted(confusion.get(name, {}).items(), key=lambda one: -one[1])
        taken = abridged([f"{answer} {count:,}" for answer, count in others if answer != name], 3)
        table.rows.append([name, f"{by_class[name]['examples']:,}", *shares, taken])
    if not full or len(by_class) > MOST_COLUMNS:
        return [table]
    matrix = TextTable("confusion: a row for each label, a column for each answer", ["", *by_class])
    for name in by_class:
        matrix.rows.append([name, *(f"{confusion.get(name, {}).get(answer, 0):,}" for answer in by_class)])
    return [table, matrix]


def _mistakes(path: Path, full: bool) -> list[TextTable]:
    if not path.is_file():
        return []
    with reading(path):
        found = validated(Mistakes, read_json(path), str(path))
    title = f"{len(found.examples)} of {found.wrong:,} wrong answers on {found.split}, the surest first"
    table = TextTable(title, ["example", "label", "answer", "sure %"], align="lllr")
    for one in found.examples:
        text = " ".join(one.example.split())
        short = text if full or len(text) <= LETTERS else f"{text[:LETTERS]}..."
        table.rows.append([short, one.label, one.answer, f"{100 * one.probability:.1f}"])
    return [table] if found.examples else []


def loss_figure(result: dict[str, Any]) -> Figure:
    """Training loss and validation score of a run by step, with a ring around the checkpoint that is deployed."""
    chosen, evaluated = result["metric"]["selected_by"], result["epochs"]
    metric = metric_named(chosen["name"])
    look: dict[str, Any] = {"color": FORM_STYLES[CALIBRATED]["color"], "linewidth": 1.2}
    figure, (above, below) = panels([], 4.8, rows=2)
    losses = {int(step): math.nan if loss is None else loss for step, loss in result["losses"].items()}
    scores = {one["step"]: one["validation"].get(metric.name) for one in evaluated}
    known = {step: metric.scale * score for step, score in scores.items() if score is not None}
    above.plot([*losses], [*losses.values()], **look)
    below.plot([*known], [*known.values()], marker="o", markersize=4, **look)
    best = [one["step"] for one in evaluated if one["epoch"] == chosen["epoch"] and one["step"] in known]
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 9,
        "color": "#000000",
        "fillstyle": "none",
        "linestyle": "none",
    }
    below.plot(best, [known[step] for step in best], **ring)
    above.set_ylabel("training loss")
    below.set_ylabel(fitted(f"validation {metric.axis}", 2.0))
    below.set_xlabel("step; the ring is what is deployed")
    below.sharex(above)
    return figure
