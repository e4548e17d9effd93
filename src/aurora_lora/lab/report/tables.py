"""Cells of tables, and a table's place in a document."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import UserError
from ...files import NOT_FINITE, reading, write_text


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
