"""What the report of a single run has beside its scores: each class, the confusion of classes, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import abridged
from ...field_errors import validated
from ...files import read_json, reading
from ...text_table import TextTable
from ...train.publish import MISTAKES, REFERENCE
from ...train.result_schema import Mistakes
from .runs import Section

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
