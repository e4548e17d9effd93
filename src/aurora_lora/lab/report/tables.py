"""Markdown tables from results, and their place in a document."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ArgumentError, UserError, abridged
from ...files import NOT_FINITE, parse_json, reading, write_text
from ...forms import REFERENCE_FORM, form_named
from ...tasks.metrics import METRICS, in_order
from ...text_table import TextTable
from ...training.reading import is_result
from ...training.results import check_result
from ...training.storage import RESULT, differences, flatten
from ..experiments.recipe_kinds import as_recipe
from ..experiments.runs_file import RUNS_FILE, RunsFile

Result = Mapping[str, Any]

NO_EFFECT_ON_RESULT = ("save_updates", "threads", "workers", "checkpoint_every", "eval_batch_size", "report_to")
"""Fields of `training` that do not change the result."""

SHOWN = METRICS["accuracy"], METRICS["nll"]
"""Metrics of the tables of forms."""


def load_results(paths: Iterable[Path | str]) -> list[Result]:
    """The results of runs: each path a `result.json`, a `runs.jsonl`, a run's folder, or a folder of such.

    Raises:
        UserError: a path with no result in or below it, or one that is not a result.
    """
    return [result for _, result in find_results(paths)]


def find_results(
    paths: Iterable[Path | str], leave_out: Collection[Path] = (), seen: set[Path] | None = None
) -> list[tuple[Path, Result]]:
    """As `load_results`, each with its file, or with what the file of a run in `runs.jsonl` would be. A file that
    several paths lead to is there once.

    Args:
        paths: as there.
        leave_out: folders below them that are not looked into.
        seen: files, resolved, that were found before and are left out; those found now are added.
    """
    seen = set() if seen is None else seen
    results = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else [*path.rglob(RUNS_FILE), *path.rglob("*.json")]
        files = [file for file in files if not any(folder in file.parents for folder in leave_out)]
        found = [one for file in files for one in _read(file, must_be=path.is_file())]
        found.sort(key=lambda one: one[0])  # of a run that is there as a folder, too, the line stays first
        if not found:
            raise UserError(f"{path} holds no result.json of a finished run")
        for file, result in found:
            if (place := file.resolve()) not in seen:
                seen.add(place)
                results.append((file, result))
    return results


def _read(path: Path, *, must_be: bool) -> list[tuple[Path, Result]]:
    if path.name == RUNS_FILE:
        return [(folder / RESULT, result) for folder, result in RunsFile(path.parent).read().items()]
    try:
        with reading(path):
            value = parse_json(path.read_text(encoding="utf-8"), finite=True)
    except UserError:
        if must_be:
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
    first, *others = (flatten(setting(result["recipe"], "learning_rate")) for result in chosen)
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
    kept = {key: value for key, value in whole.items() if key not in ("seed", "name", "reference")}
    left_out = (*NO_EFFECT_ON_RESULT, *but)
    return {**kept, "training": {k: v for k, v in whole.get("training", {}).items() if k not in left_out}}


def _complete(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of the fields that an earlier version did not have; as it is, where this one has none."""
    try:
        return as_recipe(recipe, "recipe").resolved()
    except UserError:
        return recipe


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


def finite(values: Iterable[float | None]) -> list[float]:
    """Those that are numbers; in JSON null stands for the others."""
    return [value for value in values if value is not None and math.isfinite(value)]


def count(least: int, most: int) -> str:
    """A number of parameters; both ends where runs differ, as those of LoRA-drop do."""
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def forms_table(results: Sequence[Result]) -> str:
    """The metrics of each form by learning rate, over the seeds of a task; of classes, accuracy and likelihood."""
    groups = by_learning_rate(results)
    there = [scores for runs in groups.values() for run in runs for scores in run["metric"]["by_form"].values()]
    of_classes = all(metric.name in scores for scores in there for metric in SHOWN)
    metrics = SHOWN if of_classes else in_order([name for name in there[0] if all(name in one for one in there)])
    against = [f"{metric.name} - {REFERENCE_FORM}" for metric in metrics]
    table = TextTable("", ["learning rate", "form", *(metric.column for metric in metrics), *against], align="l")
    for rate, runs in groups.items():
        forms = [run["metric"]["by_form"] for run in runs]
        for form in forms[0]:
            cells = [f"{rate:g}", form_named(form).label]
            cells += [spread([scores[form][m.name] for scores in forms], m.decimals, m.scale) for m in metrics]
            if REFERENCE_FORM in forms[0] and form != REFERENCE_FORM:
                for m in metrics:
                    pairs = [(scores[form][m.name], scores[REFERENCE_FORM][m.name]) for scores in forms]
                    gaps = [None if None in pair else pair[0] - pair[1] for pair in pairs]
                    cells.append(spread(gaps, m.decimals + 1, m.scale))
            else:
                cells += [""] * len(metrics)
            table.rows.append(cells)
    return table.markdown()


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
