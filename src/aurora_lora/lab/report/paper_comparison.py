"""A table of the paper beside ours: computed from results, nothing typed but the paper's own numbers in the suite."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from ...data.metrics import unsigned_zero
from ...text_table import TextTable
from ..experiments.suite import Cell, Suite, score_of
from .tables import count

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""Results by recipe and seed."""


@dataclass(frozen=True)
class Compared:
    """One number of the paper beside ours.

    Args:
        group: the group of rows in which it stands.
        row: its row.
        column: its column.
        recipe: the name of its recipe.
        form: the form that is compared.
        paper: the paper's number, if it has one.
        quoted: the paper took it from earlier work.
        scores: ours, seed by seed.
        ours: their median or mean, as the suite says; None without a score.
        mean: the mean, whichever the suite asks for.
        median: the median, likewise.
        spread: their standard deviation; None below two scores.
        params: trained parameters outside the head; the least, where the runs differ.
        most_params: the most.
        paper_params: what the paper prints for them.
        missing: seeds that have no result, or one that is not a number.
    """

    group: str
    row: str
    column: str
    recipe: str
    form: str
    paper: float | None
    quoted: bool
    scores: tuple[float, ...]
    ours: float | None
    mean: float | None
    median: float | None
    spread: float | None
    params: int | None
    most_params: int | None
    paper_params: str | None
    missing: int

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper

    def to_dict(self) -> dict[str, Any]:
        """The comparison as a dictionary for JSON."""
        return {**asdict(self), "scores": list(self.scores), "difference": self.difference}


def compare(suite: Suite, chosen: Sequence[Cell], seeds: Sequence[int], results: Results) -> list[Compared]:
    """Each cell's number of the paper beside the ones of our runs.

    Raises:
        UserError: a result without the cell's form or metric.
    """
    found = []
    for cell in chosen:
        runs = [results[key] for seed in seeds if (key := (cell.recipe, seed)) in results]
        scores = tuple(score for run in runs if (score := score_of(run, cell)) is not None)
        counts = [run["params"]["adapter"] for run in runs]
        mean = statistics.fmean(scores) if scores else None
        median = statistics.median(scores) if scores else None
        found.append(
            Compared(
                group=cell.group,
                row=cell.row.name,
                column=cell.column.label,
                recipe=cell.recipe,
                form=cell.row.form,
                paper=cell.paper,
                quoted=cell.row.quoted and cell.column.is_percent,  # the hours are the paper's own
                scores=scores,
                ours=median if suite.statistic == "median" else mean,
                mean=mean,
                median=median,
                spread=statistics.stdev(scores) if len(scores) > 1 else None,
                params=min(counts, default=None),
                most_params=max(counts, default=None),
                paper_params=cell.row.params,
                missing=len(seeds) - len(scores),
            )
        )
    if suite.average is not None:
        found = _with_averages(suite, chosen, found)
    return found


def _with_averages(suite: Suite, chosen: Sequence[Cell], found: Sequence[Compared]) -> list[Compared]:
    """After the cells of each row, their average: over the columns, of the medians or means over the seeds."""
    percent = sum(column.is_percent for column in suite.columns)
    result: list[Compared] = []
    for _, several in groupby(zip(chosen, found, strict=True), lambda pair: (pair[1].group, pair[1].row)):
        pairs = list(several)
        result += [one for _, one in pairs]
        averaged = [one for cell, one in pairs if cell.column.is_percent]
        if len(averaged) < percent:  # not all columns were asked for
            continue
        values = [one.ours for one in averaged if one.ours is not None]
        average = replace(
            averaged[-1],
            column=str(suite.average),
            paper=pairs[0][0].row.average,
            scores=(),
            ours=statistics.fmean(values) if len(values) == percent else None,
            mean=None,
            median=None,
            spread=None,
            params=min((one.params for one in averaged if one.params is not None), default=None),
            most_params=max((one.most_params for one in averaged if one.most_params is not None), default=None),
            missing=0,
        )
        result.append(average)
    return result


def tables(suite: Suite, compared: Sequence[Compared], *, full: bool = False) -> Iterator[TextTable]:
    """A table for each group, 80 columns wide; in full with the parameters, and each method's name in each row."""
    params = ["params, paper", "params, ours"] if full else []
    headers = ["method", *params, "data", "paper", f"ours, {suite.statistic}", "difference", "std. dev.", "seeds"]
    for group in dict.fromkeys(one.group for one in compared):
        table, last = TextTable(group, headers, align="l" if full else "llr"), ""
        for one in (one for one in compared if one.group == group):
            ours = "" if one.params is None or one.most_params is None else count(one.params, one.most_params)
            name = one.row if full or one.row != last else ""
            table.rows.append([name, *([one.paper_params or "", ours] if full else []), *_cells(one)])
            last = one.row
        yield table


def markdown(suite: Suite, compared: Sequence[Compared]) -> str:
    """The comparison as a Markdown page, with the parameters."""
    lines = [f"# {suite.title}", ""]
    for table in tables(suite, compared, full=True):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    for note in notes(suite, compared):
        lines += [note.replace("*", "\\*"), ""]
    return "\n".join(lines).strip() + "\n"


def notes(suite: Suite, compared: Sequence[Compared]) -> list[str]:
    """What a reader of the table must know."""
    star = "* The paper takes these numbers from earlier work."
    found = [star] if any(one.quoted and one.paper is not None for one in compared) else []
    return found if suite.note is None else [*found, suite.note]


def _cells(one: Compared) -> list[str]:
    star = "*" if one.quoted and one.paper is not None else ""
    total = len(one.scores) + one.missing
    seeds = "" if not total else str(total) if not one.missing else f"{len(one.scores)} of {total}"
    return [
        one.column,
        "" if one.paper is None else f"{one.paper:.1f}{star}",
        "" if one.ours is None else f"{one.ours:.1f}",
        "" if one.difference is None else unsigned_zero(f"{one.difference:+.1f}"),
        "" if one.spread is None else f"{one.spread:.1f}",
        seeds,
    ]
