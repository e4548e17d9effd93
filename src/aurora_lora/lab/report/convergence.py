"""Whether runs were trained to a plateau: what the last epoch still gained, against the spread between seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.metrics import metric_named
from ...errors import counted
from .groups import Group
from .tables import finite

ROUNDING = 0.01
"""How far an epoch that is reckoned from steps may be off."""


def convergence_note(found: Sequence[Group]) -> str:
    """How many final runs still gain more in their last epoch than the seeds of their setting are apart.

    The score is that by which the best epoch is chosen, on validation data. Where a run is evaluated several times in
    an epoch, the gain is that over the last whole one; where it is evaluated every few epochs, that between the last
    two evaluations, per epoch. The spread is the standard deviation of the last scores over the seeds.
    """
    by_metric: dict[str, list[tuple[float, float]]] = {}
    for group in found:
        for gain, spread in _gains(group):
            by_metric.setdefault(group.selected_by, []).append((gain, spread))
    if not by_metric:
        return (
            "Whether the runs have converged is not known: that needs the epochs of two seeds, each evaluated at least "
            "twice, an epoch apart."
        )
    pairs = [pair for found_pairs in by_metric.values() for pair in found_pairs]
    rising = sum(gain > spread for gain, spread in pairs)
    medians = []
    for name, of_metric in by_metric.items():
        metric = metric_named(name)
        gain, spread = (statistics.median(values) for values in zip(*of_metric, strict=True))
        points = " points" * metric.percent
        medians.append(f"{metric.shown(gain)}{points} of {metric.title}, the spread {metric.shown(spread)}")
    return (
        f"{f'Not converged: {rising}' if rising else 'Converged: none'} of {counted(len(pairs), 'final run')} still "
        f"{'gain' if rising else 'gains'} more in the last epoch than the standard deviation between the seeds of the "
        f"setting, in the validation score of the deployed form. The median gain is {'; '.join(medians)}."
    )


def _gains(group: Group) -> list[tuple[float, float]]:
    """What the last epoch of each run of a setting with several seeds gained, and the spread."""
    sign = metric_named(group.selected_by).sign
    last = [ends for run in group.runs if (ends := _last_epoch(_scored(run, group.selected_by))) is not None]
    if len(last) < 2:
        return []
    spread = statistics.stdev(score for _, (_, score) in last)
    return [(sign * (after - before) / max(end - start, 1), spread) for (start, before), (end, after) in last]


def _last_epoch(
    entries: Sequence[tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The last evaluation, after the last one that is an epoch before it at least."""
    before = [entry for entry in entries if entries[-1][0] - entry[0] > 1 - ROUNDING]
    return (before[-1], entries[-1]) if before else None


def _scored(run: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """Epoch and validation score of each evaluation that gave a number."""
    points = [(entry["epoch"], entry["validation"].get(metric)) for entry in run["epochs"]]
    return [(epoch, score) for epoch, score in points if finite([score])]
