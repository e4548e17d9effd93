"""A table of the paper beside ours: computed from results, nothing typed but the paper's own numbers in the suite."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ...data.metrics import unsigned_zero
from ...text_table import TextTable
from ..experiments.suite import Cell, Suite, score_of
from .tables import count

Compared = dict[str, Any]
"""One number of the paper beside ours; see `compare`."""


def compare(
    suite: Suite, chosen: Sequence[Cell], seeds: Sequence[int], results: Mapping[tuple[str, int], Mapping[str, Any]]
) -> list[Compared]:
    """Each cell's number of the paper beside that of our runs; after the cells of a row their average, if there is one.

    Args:
        suite: the table.
        chosen: its cells.
        seeds: of the runs.
        results: by recipe and seed.

    Returns:
        For each cell `group`, `row`, `column`, `recipe`, `form`; `paper`, its number, and `quoted`, whether it is from
        earlier work; `scores`, ours seed by seed, `ours`, their median or mean, as the suite says, `spread`, their
        standard deviation, `missing`, the seeds without a score, and `difference`, ours less the paper's; `params` and
        `most_params`, trained outside the head, and `paper_params`, what the paper prints. None where there is none.

    Raises:
        UserError: a result without the cell's form or metric.
    """
    middle = statistics.median if suite.statistic == "median" else statistics.fmean
    found: list[Compared] = []
    for (group, _), cells in groupby(chosen, lambda cell: (cell.group, cell.row)):
        of_row: list[Compared] = []
        for cell in cells:
            runs = [results[key] for seed in seeds if (key := (cell.recipe, seed)) in results]
            scores = [score for run in runs if (score := score_of(run, cell)) is not None]
            counts = [run["params"]["adapter"] for run in runs]
            of_row.append(
                {
                    "group": group,
                    "row": cell.row.name,
                    "column": cell.column.label,
                    "recipe": cell.recipe,
                    "form": cell.row.form,
                    "paper": cell.paper,
                    # the hours are the paper's own
                    "quoted": cell.row.quoted and cell.column.is_percent and cell.paper is not None,
                    "scores": scores,
                    "ours": middle(scores) if scores else None,
                    "spread": statistics.stdev(scores) if len(scores) > 1 else None,
                    "missing": len(seeds) - len(scores),
                    "params": min(counts, default=None),
                    "most_params": max(counts, default=None),
                    "paper_params": cell.row.params,
                    "counts": cell.column.is_percent,
                }
            )
        averaged = [one for one in of_row if one.pop("counts")]
        found += of_row
        if suite.average is not None and len(averaged) == sum(column.is_percent for column in suite.columns):
            ours = [one["ours"] for one in averaged if one["ours"] is not None]
            least, most = ([one[key] for one in averaged if one[key] is not None] for key in ("params", "most_params"))
            found.append(
                {
                    **averaged[-1],
                    "column": suite.average,
                    "paper": cell.row.average,
                    "quoted": cell.row.quoted and cell.row.average is not None,
                    "scores": [],
                    "ours": statistics.fmean(ours) if len(ours) == len(averaged) else None,
                    "spread": None,
                    "missing": 0,
                    "params": min(least, default=None),
                    "most_params": max(most, default=None),
                }
            )
    for one in found:
        known = one["paper"] is not None and one["ours"] is not None
        one["difference"] = one["ours"] - one["paper"] if known else None
    return found


def tables(compared: Sequence[Compared], statistic: str, *, full: bool = False) -> Iterator[TextTable]:
    """A table for each group, 80 columns wide; in full with the parameters, and each method's name in each row."""
    params = ["params, paper", "params, ours"] if full else []
    headers = ["method", *params, "data", "paper", f"ours, {statistic}", "difference", "std. dev.", "seeds"]
    for group, of_group in groupby(compared, lambda one: one["group"]):
        table, last = TextTable(group, headers, align="l" if full else "llr"), ""
        for one in of_group:
            ours = "" if one["params"] is None else count(one["params"], one["most_params"])
            there, total = len(one["scores"]), len(one["scores"]) + one["missing"]
            table.rows.append(
                [
                    one["row"] if full or one["row"] != last else "",
                    *([one["paper_params"] or "", ours] if full else []),
                    one["column"],
                    _shown(one["paper"]) + "*" * one["quoted"],
                    _shown(one["ours"]),
                    _shown(one["difference"], "+"),
                    _shown(one["spread"]),
                    f"{there} of {total}" if one["missing"] else str(total or ""),
                ]
            )
            last = one["row"]
        yield table


def _shown(value: float | None, sign: str = "") -> str:
    return "" if value is None else unsigned_zero(f"{value:{sign}.1f}")


def markdown(suite: Suite, compared: Sequence[Compared]) -> str:
    """The comparison as a Markdown page, with the parameters."""
    lines = [f"# {suite.title}", ""]
    for table in tables(compared, suite.statistic, full=True):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    lines += [line for note in notes(suite, compared) for line in (note.replace("*", "\\*"), "")]
    return "\n".join(lines).strip() + "\n"


def notes(suite: Suite, compared: Sequence[Compared]) -> list[str]:
    """What a reader of the table must know."""
    star = "* The paper takes these numbers from earlier work."
    return [*([star] if any(one["quoted"] for one in compared) else []), *([suite.note] if suite.note else [])]
