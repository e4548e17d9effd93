"""Markdown tables from results, and their place in a document."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...data.metrics import METRICS, in_order
from ...errors import UserError
from ...files import NOT_FINITE, reading, write_text
from ...forms import REFERENCE_FORM, form_named
from ...text_table import TextTable
from .results import Result, by_learning_rate

SHOWN = METRICS["accuracy"], METRICS["nll"]
"""Metrics of the tables of forms."""


def spread(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """`mean ± standard deviation`, or the one value; of those that are finite, and of how many where some are not."""
    scaled = [scale * value for value in finite(values)]
    if not scaled:
        return NOT_FINITE
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return mean_and_std(mean, f"{statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else None, values)


def mean_and_std(mean: str, std: str | None, values: Sequence[float | None]) -> str:
    """`83.1 ± 0.4`, of the finite ones of some values."""
    shown = mean if std is None else f"{mean} ± {std}"
    return " ".join(filter(None, (shown, left_out(len(finite(values)), len(values)))))


def left_out(kept: int, of: int) -> str:
    """`(2 of 3 finite)`, where a mean leaves some out."""
    return "" if kept == of else f"({kept} of {of} finite)"


def of_seeds(there: int, wanted: int) -> str:
    """`(3 of 5 seeds)`, where a study has fewer finished runs than it was to have."""
    return f"({there} of {wanted} seeds)" if there < wanted else ""


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are finite numbers; in JSON null stands for the others."""
    return [value for value in values if value is not None and math.isfinite(value)]


def count(least: int, most: int) -> str:
    """A number of parameters; both ends where runs differ, as those of LoRA-drop do."""
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def forms_table(results: Sequence[Result]) -> str:
    """The metrics of each form by learning rate, over the seeds of a task; of classes, accuracy and likelihood."""
    groups = by_learning_rate(results)
    there = [scores for runs in groups.values() for run in runs for scores in run["metric"]["by_form"].values()]
    of_classes = all(metric.name in scores for scores in there for metric in SHOWN)
    metrics = SHOWN if of_classes else in_order([name for name in there[0] if all(name in one for one in there)])
    against = [f"{metric.name} - {REFERENCE_FORM}" for metric in metrics]
    table = TextTable("", ["learning rate", "form", *(metric.column for metric in metrics), *against], align="l")
    for rate, runs in groups.items():
        forms = [run["metric"]["by_form"] for run in runs]
        for form in forms[0]:
            cells = [f"{rate:g}", form_named(form).label]
            cells += [spread([scores[form][m.name] for scores in forms], m.decimals, m.scale) for m in metrics]
            if REFERENCE_FORM in forms[0] and form != REFERENCE_FORM:
                for m in metrics:
                    pairs = [(scores[form][m.name], scores[REFERENCE_FORM][m.name]) for scores in forms]
                    gaps = [None if None in pair else pair[0] - pair[1] for pair in pairs]
                    cells.append(spread(gaps, m.decimals + 1, m.scale))
            else:
                cells += [""] * len(metrics)
            table.rows.append(cells)
    return table.markdown()


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end name -->` in a document.

    Raises:
        UserError: the document has no such marks.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no document")  # a device may have no end
    with reading(path):
        document = path.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if not marks.search(document):
        raise UserError(f"{path} has no marks '<!-- {name} -->' and '<!-- end {name} -->'")
    write_text(path, marks.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", document))
