"""The plan of a suite (`aurora reproduce --dry-run`): one line for each recipe, its seeds together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ..experiments.suite import Suite


def plan_tables(suite: Suite, rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table for each model, and the sum of them."""
    for model in dict.fromkeys(row["model"] for row in rows):
        table = Table(title=f"{suite.title}: {model}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("recipe", overflow="fold", min_width=24)
        table.add_column("data", overflow="fold")
        for name in ("params", "memory", "time", "done"):
            table.add_column(name, justify="right")
        of_model = [row for row in rows if row["model"] == model]
        for recipe in dict.fromkeys(row["recipe"] for row in of_model):
            runs = [row for row in of_model if row["recipe"] == recipe]
            first, done = runs[0], sum(row["status"] == "finished" for row in runs)
            table.add_row(
                recipe,
                first["data"],
                f"{first['params']['adapter']:,}",
                f"{first['memory_gb']:.1f} GB",
                _time(first["hours"]),
                f"{done}/{len(runs)}",
            )
        yield table
    yield _sum(rows)


def _sum(rows: Sequence[Mapping[str, Any]]) -> Table:
    left = [row for row in rows if row["status"] != "finished"]
    table = Table(box=None, show_header=False, padding=(0, 1))
    hours = [row["hours"] for row in left if row["hours"] is not None]
    length = [f"about {_time(max(sum(hours), 1 / 60))} on one {rows[0]['gpu']}"] if hours else []
    length += [f"{len(left) - len(hours)} runs of unknown length"] if len(left) > len(hours) else []
    of_length = f": {', and '.join(length)}" if length else ""
    table.add_row(
        f"{len(rows)} runs, {len(left)} of them to do{of_length}. "
        "Memory and time of each run are estimates from its shapes; params are trained, the head is not among them."
    )
    return table


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours * 60 >= 1 else "< 1 min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"
