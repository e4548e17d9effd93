"""The results of runs: where they are found, and which recipes count as one setting."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...diffusion.recipe_kinds import as_recipe
from ...errors import ArgumentError, UserError, abridged
from ...files import below, parse_json, reading
from ...train.publish import RESULT
from ...train.recipe import CHANGE_NOTHING, differences, flatten, is_result
from ...train.results import check_result
from ..experiments.runs_file import RUNS_FILE, read_runs

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
    whole = _complete(recipe)
    left_out = {*NO_EFFECT_ON_RESULT, *(f"training.{field}" for field in but)}
    kept = {key: value for key, value in whole.items() if key not in ("seed", "name", "reference")}
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


def _complete(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of the fields that an earlier version did not have; as it is, where this one has none."""
    try:
        return as_recipe(recipe, "recipe").resolved()
    except UserError:
        return recipe
