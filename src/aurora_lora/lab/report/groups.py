"""Results of runs: where they are found, and which belong together: those of one setting, which differ in their seed
alone, and settings at several ranks."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.metrics import metric_named
from ...errors import ArgumentError, UserError, abridged
from ...files import below, parse_json, reading
from ...train.publish import REFERENCE, RESULT
from ...train.recipe import CHANGE_NOTHING, differences, flatten, is_result
from ...train.results import check_result, validation_score
from ..experiments.runs_file import RUNS_FILE, read_runs
from .tables import count, finite

Result = Mapping[str, Any]

NO_EFFECT_ON_RESULT = {*CHANGE_NOTHING, "training.save_updates", "training.threads"} - {"task.test_sets"}
"""Fields of a recipe that do not change the scores; which test sets there are changes their mean."""


def load_results(paths: Iterable[Path | str]) -> list[Result]:
    """The results of runs: each path a `result.json`, a `runs.jsonl`, a run's folder, or a folder of such.

    Raises:
        UserError: a path with no result in or below it, or one that is not a result.
    """
    return [result for _, result in find_results(paths)]


def find_results(
    paths: Iterable[Path | str],
    leave_out: Collection[Path] = (),
    seen: set[Path] | None = None,
    *,
    may_be_none: bool = False,
) -> list[tuple[Path, Result]]:
    """What `load_results` finds, each with its file, or with what the file of a run in `runs.jsonl` would be. A file
    that several paths lead to is there once.

    Args:
        paths: as there.
        leave_out: folders below them that are not looked into.
        seen: files, resolved, that were found before and are left out; those found now are added.
        may_be_none: whether a path may have no result in or below it.
    """
    seen = set() if seen is None else seen
    results = []
    for path in map(Path, paths):
        there = [path] if path.is_file() else [*below(path, RUNS_FILE), *below(path, "*.json")]
        there = [file for file in there if not any(folder in file.parents for folder in leave_out)]
        found = [one for file in there for one in _read(file, must_be=path.is_file())]
        found.sort(key=lambda one: one[0])  # of a run that is there as a folder, too, the line stays first
        if not found and not may_be_none:
            raise UserError(f"{path} holds no result.json of a finished run")
        for file, result in found:
            if (place := file.resolve()) not in seen:
                seen.add(place)
                results.append((file, result))
    return results


def _read(path: Path, *, must_be: bool) -> list[tuple[Path, Result]]:
    if path.name == RUNS_FILE:
        return [(folder / RESULT, result) for folder, result in read_runs(path.parent).items()]
    try:
        with reading(path):
            value = parse_json(path.read_text(encoding="utf-8"), finite=True)
    except UserError:
        if must_be or path.name == RESULT:  # of a run: without it a mean would be that of fewer seeds
            raise
        return []
    if must_be and not is_result(value):
        raise UserError(f"{path} is not a result of aurora train")
    return [(path, check_result(value, str(path)))] if is_result(value) else []


def by_learning_rate(results: Sequence[Result]) -> dict[float, list[Result]]:
    """The runs of AuroRA by their learning rate, lowest first.

    Raises:
        UserError: none, or runs whose recipes differ in more than the learning rate and the seed.
    """
    groups: dict[float, list[Result]] = {}
    chosen = [result for result in results if result["method"] == "aurora"]
    if not chosen:
        raise ArgumentError("there is no result of a run of aurora: `html` FILE.html shows any runs")
    same = without_splits_of_seeds(chosen)
    first, *others = (flatten(setting(result["recipe"], "learning_rate")) for result in same)
    for other in others:
        if differing := differences(first, other, names=("one", "another")):
            raise ArgumentError(
                f"the runs differ in more than learning rate and seed, in {abridged(differing, 4)}: report those of "
                "one setting at a time; `html` FILE.html shows any runs"
            )
    for result in chosen:
        groups.setdefault(float(result["recipe"]["training"]["learning_rate"]), []).append(result)
    return dict(sorted(groups.items()))


def setting(recipe: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """What tells a recipe from others but for the seed: without what does not change the scores.

    Args:
        recipe: of a result.
        but: further fields of `training` to leave out.
    """
    left_out = {*NO_EFFECT_ON_RESULT, *(f"training.{field}" for field in but)}
    kept = {key: value for key, value in recipe.items() if key not in ("seed", "name", "reference")}
    return {
        section: {key: value for key, value in fields.items() if f"{section}.{key}" not in left_out}
        if isinstance(fields, Mapping)
        else fields
        for section, fields in kept.items()
    }


def without_splits_of_seeds(results: Sequence[Result]) -> list[Result]:
    """The results, whose recipes say nothing of the split where each seed has its own, as in a study with
    `split_by_seed`: it makes no other setting."""
    if any(flatten(result["recipe"]).get("task.split_seed") != result["seed"] for result in results):
        return list(results)
    return [{**result, "recipe": _without_split(result["recipe"])} for result in results]


def _without_split(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {**recipe, "task": {key: value for key, value in recipe["task"].items() if key != "split_seed"}}


# ---------------------------------------------------------------- settings


OF_RANK = ("r", "alpha", "lora_alpha")
"""Options that change with the rank: settings that differ in these alone are one line of a figure."""


@dataclass
class Group:
    """The runs of one recipe over its seeds.

    Args:
        label: what tells it from the others of its model and task.
        runs: results, by seed.
        line: what it has in common with the same method at other ranks.
        folders: of the runs; None where there is only a result.
    """

    label: str
    runs: list[Result] = field(default_factory=list)
    line: str = ""
    folders: list[Path | None] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The name of the method."""
        return str(self.runs[0]["method"])

    @property
    def rank(self) -> int | None:
        """r of all layers; None for a method without, and where a budget gives each layer its own."""
        method = self.runs[0]["recipe"]["method"]
        rank = None if method.get("budget") else method.get("r")
        return rank if isinstance(rank, int) else None

    @property
    def forms(self) -> list[str]:
        """The forms that the runs were evaluated in."""
        return list(dict.fromkeys(form for run in self.runs for form in run["metric"]["by_form"]))

    @property
    def deployed(self) -> str:
        """The form that the runs are selected by."""
        return str(self.runs[0]["metric"]["selected_by"]["form"])

    @property
    def metric(self) -> str:
        """The main metric of the task."""
        return str(self.runs[0]["metric"]["name"])

    @property
    def params(self) -> int:
        """Trained parameters outside the head; the least where the runs differ."""
        return min(self._counts)

    @property
    def counted(self) -> str:
        """Trained parameters outside the head, for people; with both ends where the runs differ."""
        return count(min(self._counts), max(self._counts))

    @property
    def _counts(self) -> list[int]:
        return [int(run["params"]["adapter"]) for run in self.runs]

    @property
    def selected_by(self) -> str:
        """The metric that the best epoch is chosen by: of the validation scores."""
        return str(self.runs[0]["metric"]["selected_by"].get("name", self.metric))

    @property
    def validation(self) -> float:
        """How good the mean of the scores is that the runs were selected by; minus infinity where none is a number."""
        return self.validation_by(self.selected_by)

    def validation_by(self, metric: str) -> float:
        """How good the mean of a validation score is in the epochs that the runs were selected for, as `validation`."""
        numbers = finite([validation_score(run, metric) for run in self.runs])
        return metric_named(metric).sign * statistics.fmean(numbers) if numbers else -math.inf

    @property
    def standing(self) -> tuple[int, float]:
        """What decides which one of several settings is shown: of those with the most seeds, as a mean of fewer may be
        ahead by chance, the best one on validation data."""
        return len(self.runs), self.validation

    @property
    def test_sets(self) -> list[str]:
        """The names of the test sets, where there are several."""
        return list(self.runs[0]["metric"].get("by_test_set", ()))

    def scores(self, form: str, metric: str, test_set: str | None = None) -> list[float]:
        """The scores of a form by a metric, seed by seed; those that are numbers.

        Args:
            form: of the trained model.
            metric: its name.
            test_set: one of several; None is the mean over them.
        """
        metrics = [run["metric"] for run in self.runs]
        by_form = [
            one["by_form"] if test_set is None else one.get("by_test_set", {}).get(test_set, {}) for one in metrics
        ]
        found = [one.get(form, {}).get(metric) for one in by_form]
        return finite(found)

    def runs_of(self, form: str) -> int:
        """How many runs have scores of a form."""
        return sum(bool(run["metric"]["by_form"].get(form)) for run in self.runs)

    def with_form(self, label: str) -> str:
        """A label with the form that is deployed, where there are several."""
        return f"{label} ({self.deployed})" if len(self.forms) > 1 else label


def groups(results: Sequence[Result], folders: Sequence[Path | None] = ()) -> dict[tuple[str, str], list[Group]]:
    """The settings that results are of, by task and model, in the order in which they come.

    Args:
        results: of finished runs.
        folders: those of the runs; none if empty.

    Raises:
        UserError: two runs of one setting have the same seed: they would count twice; or two runs were on other
            contents of a file of one name.
    """
    places: dict[tuple[str, str], list[tuple[Result, Path | None]]] = {}
    for result, folder in zip(results, folders or [None] * len(results), strict=True):
        places.setdefault((result["task"], result["model"]), []).append((result, folder))
    found = {}
    for where, there in places.items():
        _check_same_files(there)
        by_setting: dict[str, list[tuple[Result, Path | None]]] = {}
        same = without_splits_of_seeds([result for result, _ in there])
        for run, one in zip(there, same, strict=True):
            by_setting.setdefault(json.dumps(setting(one["recipe"]), sort_keys=True), []).append(run)
        several = [_by_seed(runs) for runs in by_setting.values()]
        compared = {id(result): one for (result, _), one in zip(there, same, strict=True)}
        firsts = [compared[id(runs[0][0])] for runs in several]
        found[where] = [
            Group(name, [result for result, _ in runs], line, [folder for _, folder in runs])
            for name, line, runs in zip(labels(firsts), lines(firsts), several, strict=True)
        ]
    return found


def _check_same_files(runs: Iterable[tuple[Result, Path | None]]) -> None:
    """Raise a UserError for runs on other contents of a file of one name: their scores are not compared."""
    first: dict[str, tuple[str, Path | None]] = {}
    for result, folder in runs:
        for name, sha256 in ((result.get("data") or {}).get("files") or {}).items():
            there, other = first.setdefault(name, (sha256, folder))
            if there != sha256:
                where = "" if folder is None else f": {other} and {folder}"
                raise UserError(f"runs on other contents of {name} are not compared{where}; report them apart")


def _by_seed(runs: Iterable[tuple[Result, Path | None]]) -> list[tuple[Result, Path | None]]:
    """The runs of a setting, by seed. Runs that were compared with the same reference have each a copy of it."""
    found: dict[int, tuple[Result, Path | None]] = {}
    for result, folder in runs:
        seed = int(result["seed"])
        before = found.get(seed)
        if before is None or _is_reference(before[1]):
            found[seed] = result, folder
        elif not _is_reference(folder):
            where = "" if folder is None else f": {before[1]} and {folder}"
            raise UserError(
                f"two runs of {result['method']} on {result['task']} have seed {seed}{where}; leave one out"
            )
    return [found[seed] for seed in sorted(found)]


def _is_reference(folder: Path | None) -> bool:
    return folder is not None and folder.name == REFERENCE


def labels(results: Sequence[Result]) -> list[str]:
    """The method of each, and the fields of its recipe in which runs of that method differ."""
    recipes = [setting(result["recipe"]) for result in results]
    first = ("method", "training", "task", "model", "calibration")
    in_order = [{name: one[name] for name in (*first, *one) if name in one} for one in recipes]
    return _named(results, [flatten(one) for one in in_order])


def lines(results: Sequence[Result]) -> list[str]:
    """The method of each, and what runs of that method differ in of its options, those of the rank left out, and of all
    other sections but the training: on other data, or another base, the best setting is another question. So it is
    where another metric selects."""
    recipes = [setting(result["recipe"]) for result in results]
    options = [{key: value for key, value in one["method"].items() if key not in OF_RANK} for one in recipes]
    others = [flatten({name: one[name] for name in one if name not in ("method", "training")}) for one in recipes]
    others = [
        {**other, "select_by": one.get("training", {}).get("select_by")}
        for one, other in zip(recipes, others, strict=True)
    ]
    return _named(results, [{**own, **other} for own, other in zip(options, others, strict=True)])


def _named(results: Sequence[Result], fields: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for result, own in zip(results, fields, strict=True):
        others = [other for r, other in zip(results, fields, strict=True) if r["method"] == result["method"]]
        differing = [key for key, value in own.items() if any(other.get(key) != value for other in others)]
        given = ", ".join(f"{key.rpartition('.')[2]} {plain(own[key])}" for key in differing)
        names.append(f"{result['method']}: {given}" if given else str(result["method"]))
    return names


def chosen(found: Iterable[Group]) -> dict[str, list[Group]]:
    """The settings to show, by line, smallest first: of those that differ in their training alone (other learning
    rates, say) and have the most seeds, the best one on validation data."""
    best: dict[str, dict[tuple[Any, ...], Group]] = {}
    for group in found:
        at_rank = best.setdefault(group.line or group.label, {})
        rank = tuple(group.runs[0]["recipe"]["method"].get(name) for name in OF_RANK)
        other = at_rank.get(rank)
        if other is None or group.standing > other.standing:
            at_rank[rank] = group
    return {line: sorted(by_rank.values(), key=lambda group: group.params) for line, by_rank in best.items()}


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95% interval of the mean; nothing below two values."""
    if len(values) < 2:
        return None, None
    if min(values) == max(values):  # the test divides by their standard deviation
        return values[0], values[0]
    found = of_student(values).confidence_interval(0.95)
    return float(found.low), float(found.high)


def of_student(values: Sequence[float]) -> Any:
    """SciPy's t test of a mean of 0, of two or more values that are not all the same."""
    from scipy.stats import ttest_1samp

    with warnings.catch_warnings():  # of values that are the same but for rounding
        warnings.simplefilter("ignore", RuntimeWarning)
        return ttest_1samp(values, 0)


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the interval; not a number for one value."""
    low, high = interval(values)
    return math.nan if low is None or high is None else (high - low) / 2


def plain(value: Any) -> str:
    """A recipe's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
