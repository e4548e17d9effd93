"""The tables of a study (`aurora sweep`), from its study.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

PERCENT = ("accuracy", "f1", "matthews", "pearson", "spearman")
"""Metrics that are printed times 100."""


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """What was chosen for each setting, and how it scored on test data, mean and standard deviation over the seeds."""
    study = summary["study"]
    metrics = _metrics(summary)
    table = Table(
        title=f"{study['name']}: {study['tuning']['budget']} runs to tune each, {len(study['seeds'])} seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("setting")
    table.add_column("params", justify="right")
    table.add_column("chosen")
    table.add_column("form")
    for metric in metrics:
        table.add_column(f"{metric} %" if metric in PERCENT else metric, justify="right")
    for setting in summary["settings"]:
        chosen = ", ".join(f"{name.rpartition('.')[2]} {_plain(value)}" for name, value in setting["chosen"].items())
        for index, (form, scores) in enumerate(setting["by_form"].items()):
            first = index == 0
            table.add_row(
                setting["name"] if first else "",
                f"{setting['params']['adapter']:,}" if first and setting["params"] else "",
                chosen.replace("learning_rate", "lr") if first else "",
                form,
                *(mean_and_std(metric, scores.get(metric)) for metric in metrics),
            )
    yield table


def mean_and_std(metric: str, score: Mapping[str, Any] | None) -> str:
    """`83.1 ± 0.4`."""
    if score is None or score["mean"] is None:
        return "not a number"
    scale, digits = (100, 1) if metric in PERCENT else (1, 3)
    mean = f"{scale * score['mean']:.{digits}f}"
    return mean if score["std"] is None else f"{mean} ± {scale * score['std']:.{digits}f}"


def _metrics(summary: Mapping[str, Any]) -> list[str]:
    found = [name for s in summary["settings"] for scores in s["by_form"].values() for name in scores]
    return list(dict.fromkeys(found))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
