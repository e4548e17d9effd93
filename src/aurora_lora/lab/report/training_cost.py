"""What training cost: seconds, examples a second and peak memory of each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...text_table import TextTable
from .groups import Group
from .tables import spread

COLUMNS = ("training, s", "examples / s", "peak memory, MiB")


def time_rows(found: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """For each setting, mean and standard deviation over the seeds of `COLUMNS`; the memory is the largest.

    A study.json without its runs knows the seconds alone.
    """
    return [
        (group.label, [_spread(group, "train_s", 0), _spread(group, "samples_per_s", 1), _memory(group)])
        for group in found
    ]


def _spread(group: Group, name: str, digits: int) -> str:
    values = [run["time"][name] for run in group.runs if name in run["time"]]
    return spread(values, digits) if values else ""


def _memory(group: Group) -> str:
    values: list[Any] = [run["memory"]["peak_mb"] for run in group.runs if "memory" in run]
    return f"{max(values):,.0f}" if values else ""


def time_table(found: Sequence[Group]) -> str:
    """The rows of `time_rows` as a Markdown table."""
    rows: list[Sequence[str]] = [[label, *cells] for label, cells in time_rows(found)]
    return TextTable("", ["setting", *COLUMNS], rows).markdown()
