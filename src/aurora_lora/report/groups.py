"""Runs that belong together: those of one setting, which differ in their seed alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..training.storage import flatten
from .tables import Result


@dataclass
class Group:
    """The runs of one recipe over its seeds.

    Args:
        label: what tells it from the others of its model and task.
        runs: results, by seed.
    """

    label: str
    runs: list[Result] = field(default_factory=list)

    @property
    def forms(self) -> list[str]:
        """Of the runs."""
        return list(self.runs[0]["metric"]["by_form"])

    @property
    def deployed(self) -> str:
        """The form that the runs are selected by."""
        return str(self.runs[0]["metric"]["selected_by"]["form"])

    @property
    def metric(self) -> str:
        """The main one."""
        return str(self.runs[0]["metric"]["name"])

    @property
    def params(self) -> int:
        """Trained, outside the head."""
        return int(self.runs[0]["params"]["adapter"])

    def scores(self, form: str, metric: str) -> list[float]:
        """Seed by seed; those that are numbers."""
        found = [run["metric"]["by_form"].get(form, {}).get(metric) for run in self.runs]
        return [value for value in found if value is not None]


def groups(results: Iterable[Result]) -> dict[tuple[str, str], list[Group]]:
    """By task and model, then by setting, in the order in which they come."""
    settings: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in results:
        recipe = {key: value for key, value in result["recipe"].items() if key not in ("seed", "name", "reference")}
        key = json.dumps(recipe, sort_keys=True)
        settings.setdefault((result["task"], result["model"]), {}).setdefault(key, []).append(result)
    found = {}
    for where, by_setting in settings.items():
        several = [sorted(runs, key=lambda run: int(run["seed"])) for runs in by_setting.values()]
        names = labels([runs[0] for runs in several])
        found[where] = [Group(name, runs) for name, runs in zip(names, several, strict=True)]
    return found


def labels(results: Sequence[Result]) -> list[str]:
    """The method of each, and the fields of its recipe in which runs of that method differ."""
    flat = [flatten({k: v for k, v in r["recipe"].items() if k in ("method", "training", "task")}) for r in results]
    names = []
    for result, own in zip(results, flat, strict=True):
        others = [other for r, other in zip(results, flat, strict=True) if r["method"] == result["method"]]
        differing = [key for key, value in own.items() if any(other.get(key) != value for other in others)]
        given = ", ".join(f"{key.rpartition('.')[2]} {plain(own[key])}" for key in differing)
        names.append(f"{result['method']}: {given}" if given else str(result["method"]))
    return names


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95% interval of the mean; nothing below two values."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def plain(value: Any) -> str:
    """A recipe's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
