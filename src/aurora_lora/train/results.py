"""`result.json`: what a run was and what came out of it; and its scores as rows and tables for people."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import files
from ..data import TASKS
from ..data.metrics import Metric, chance_levels, in_order, metric_named
from ..errors import UserError, counted
from ..forms import FORMS, MERGED
from ..methods import ParameterCounts
from ..text_table import TextTable
from .publish import RESULT
from .recipe import RunRecipe

SCHEMA = 1
MOST_LONG = 3
"""Metrics whose titles, written out, have room beside each other in a table."""

Result = dict[str, Any]
Scores = dict[str, dict[str, float]]
"""Metrics by form."""
Levels = Mapping[str, Mapping[str, float]]
"""Metrics by test set of what takes no model."""


def build_result(
    recipe: RunRecipe,
    *,
    model_commit: str | None,
    metric: str,
    split: str,
    examples: Mapping[str, int],
    test: Mapping[str, Scores],
    validation: Scores,
    selected_by: Mapping[str, Any],
    params: ParameterCounts,
    train_s: float,
    trained_examples: int,
    peak_mb: float,
    processes: int,
    epochs: list[dict[str, Any]],
    labels: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    chance: Levels | None = None,
    most_frequent: Levels | None = None,
    before: Mapping[str, float] | None = None,
    samples: Sequence[Mapping[str, str]] = (),
) -> Result:
    """The contents of result.json, in which these stand by their names (docs/recipe.md): `test` has the metrics of each
    form on each test set, `split` says whether the scores are of these or of `validation`; `train_s` seconds of steps,
    added up over interruptions, in which `trained_examples` were seen; `peak_mb` MiB of one process."""
    return {
        "schema": SCHEMA,
        "recipe": recipe.resolved(),
        "method": recipe.method.name,
        "model": recipe.model,
        "task": recipe.task_title,
        "seed": recipe.seed,
        "metric": {
            "name": metric,
            "split": split,
            "examples": dict(examples),
            "by_form": files.finite_or_none(mean_scores(test)),
            **({} if set(test) == {split} else {"by_test_set": files.finite_or_none(test)}),
            **({"chance": dict(chance)} if chance and all(chance.values()) else {}),
            **({"most_frequent": dict(most_frequent)} if most_frequent and all(most_frequent.values()) else {}),
            **({"before": files.finite_or_none(before)} if before else {}),
            "validation_by_form": files.finite_or_none(validation),
            "selected_by": dict(selected_by),
        },
        **({"labels": list(labels)} if labels else {}),
        **({"data": dict(data)} if data is not None else {}),
        **({"samples": [dict(one) for one in samples]} if samples else {}),
        "params": asdict(params),
        "time": {"train_s": round(train_s, 3), "samples_per_s": round(trained_examples / max(train_s, 1e-9), 2)},
        "memory": {"peak_mb": round(peak_mb, 1)},
        "epochs": epochs,
        "versions": versions(),
        "git_commit": git_commit(),
        "model_commit": model_commit,
        "device": device(),
        "processes": processes,
        "status": "finished",
    }


def test_sets(result: Result) -> tuple[str, ...]:
    """The test sets that a result has scores of; none where the recipe knows of none."""
    return tuple(result["metric"].get("by_test_set") or result["recipe"]["task"].get("test_sets") or ())


def mean_scores(test: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Scores:
    """Metrics by form: the mean over the test sets, each counting the same; NaN where one is None."""
    sets = list(test.values())

    def mean(form: str, name: str) -> float:
        values = [scores[form][name] for scores in sets]
        return sum(math.nan if value is None else value for value in values) / len(sets)

    return {form: {name: mean(form, name) for name in metrics} for form, metrics in sets[0].items()}


def validation_score(result: Mapping[str, Any], metric: str | None = None) -> float | None:
    """A validation score of the epoch that was chosen: that by which it was if `metric` is None; None if not known."""
    chosen = result["metric"]["selected_by"]
    if metric is None or metric == (chosen.get("name") or result["metric"]["name"]):
        value: float | None = chosen.get("value")
        return value
    of_epoch = [entry["validation"] for entry in result["epochs"] if entry["epoch"] == chosen.get("epoch")]
    return of_epoch[0].get(metric) if of_epoch else None


def chance_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of uniform guessing, the mean over the test sets; those that the result has scores of."""
    scored = {name for scores in result["metric"]["by_form"].values() for name in scores}
    return {name: value for name, value in _mean_level(result, "chance").items() if name in scored}


def most_frequent_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of always answering with the most frequent class, the mean over the test sets, if there are any."""
    return _mean_level(result, "most_frequent")


def _mean_level(result: Mapping[str, Any], of: str) -> dict[str, float]:
    levels = list(result["metric"].get(of, {}).values())
    return {name: sum(one[name] for one in levels) / len(levels) for name in levels[0]} if levels else {}


def task_chance(name: str) -> dict[str, float]:
    """The metrics of uniform guessing on a task whose examples have all as many answers; empty for others."""
    task = TASKS.get(name)
    return {} if task is None or task.num_labels < 2 else chance_levels([task.num_labels])


def read_result(folder: Path | str) -> Result | None:
    """The result of a finished run, or None; raises a UserError where the file is none that this version can read."""
    path = Path(folder) / RESULT
    with files.reading(path):
        try:
            result = files.parse_json(path.read_text(encoding="utf-8"), finite=True)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is not a result of aurora train") from error
    return check_result(result, str(path))


def check_result(value: Any, where: str) -> Result:
    """The value that a file holds; raises a UserError where it is no result that this version can read."""
    if not isinstance(value, dict) or "schema" not in value:
        raise UserError(f"{where} is not a result of aurora train")
    if value["schema"] != SCHEMA:
        raise UserError(f"{where} has schema {value['schema']}, this version reads schema {SCHEMA}")
    sections = all(isinstance(value.get(name), dict) for name in ("recipe", "metric", "params", "time"))
    if "status" in value and not (sections and {"by_form", "selected_by", "name"} <= value["metric"].keys()):
        raise UserError(f"{where} is damaged: it lacks what every result has")
    return value


def epochs_from_log(history: list[dict[str, Any]], metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """One entry for each evaluation in Transformers' log: epoch, step, mean training loss since the last, metrics."""
    entries: list[dict[str, Any]] = []
    total, steps, last = 0.0, 0, 0
    for record in history:
        found = {name: record[f"eval_{name}"] for name in metrics if f"eval_{name}" in record}
        if "loss" in record:  # the mean over the steps since the one before
            step = record.get("step", last + 1)
            total, steps, last = total + record["loss"] * (step - last), steps + step - last, step
        elif found:
            train_loss = total / steps if steps else None
            entries.append(
                {"epoch": record["epoch"], "step": record["step"], "train_loss": train_loss, "validation": found}
            )
            total, steps = 0.0, 0
    return files.finite_or_none(entries)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- what it was computed with


def versions() -> dict[str, str | None]:
    """Versions of everything that has a say in the numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("aurora-lora", "torch", "transformers", "peft", "accelerate", "datasets", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with `-dirty` after changes; None when installed."""
    git, here = ["git", "-C", str(Path(__file__).parent)], Path(__file__).name
    try:
        for command in (["ls-files", "--error-unmatch", here], ["describe", "--always", "--dirty", "--abbrev=40"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def device() -> str:
    """What the run was computed on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


# ---------------------------------------------------------------- for people


def examples_scored(result: Result) -> str:
    """How many examples the scores of a result are over, and of which split, for people."""
    metric, sets = result["metric"], test_sets(result)
    if len(sets) > 1:
        return f"mean of {len(sets)} test sets"
    if metric["split"] in metric["examples"] and "by_test_set" not in metric:
        return counted(metric["examples"][metric["split"]], metric["split"] + " example")
    return f"{counted(metric['examples'][sets[0]], 'example')} of {sets[0]}"


def chance_row(chance: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    """The row of uniform guessing, or of a constant for numbers, in a table of these metrics."""
    return _row("the training mean" if "mse" in chance else "uniform guessing", chance, metrics)


def rows_without_model(result: Mapping[str, Any], metrics: Sequence[Metric]) -> list[list[str]]:
    """The rows of what takes no model in a table of these metrics: guessing, and always the most frequent class."""
    chance, always = chance_of(result), most_frequent_of(result)
    rows = [chance_row(chance, metrics)] if chance else []
    return [*rows, *([_row("the most frequent class", always, metrics)] if always else [])]


def _row(name: str, scores: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    return [name, *(one.shown(scores[one.name]) if one.name in scores else "" for one in metrics)]


def score_table(method: str, scores: Scores, deployed: str | None) -> TextTable:
    """The scores of a method's forms, a row for each, which starts with the form's name; a method of a single form has
    the method's name there. The `deployed` form is marked, if there are several."""
    metrics = in_order(next(iter(scores.values())))
    rows: list[Sequence[str]] = []
    for form, values in scores.items():
        name = FORMS[form].title if form in FORMS else method.replace("-", " ") if form == MERGED else form
        rows.append(_row(f"{name}, deployed" if form == deployed and len(scores) > 1 else name, values, metrics))
    headings = [metric.heading if len(metrics) <= MOST_LONG else metric.column for metric in metrics]
    return TextTable("", ["form", *headings], rows)


def scores_of(result: Result) -> TextTable:
    """The scores of a run: of the base model before the training, where it was scored, and of every form."""
    table = score_table(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if (before := result["metric"].get("before")) is not None:
        table.rows.insert(0, _row("before the training", before, in_order(before)))
    return table


def run_table(result: Result, reference: Result | None) -> TextTable:
    """The scores of a run beside those of its reference and of what takes no model."""
    table = scores_of(result)
    if reference is not None:
        table.rows.extend(score_table(reference["method"], reference["metric"]["by_form"], None).rows)
    table.rows.extend(rows_without_model(result, in_order(next(iter(result["metric"]["by_form"].values())))))
    return table


def print_result(console: Console, result: Result, reference: Result | None) -> None:
    """Scores of every form beside the reference, answers, parameter counts, and how it was trained."""
    console.print(replace(run_table(result, reference), title=f"{result['task']}: {examples_scored(result)}"))
    by_test_set = result["metric"].get("by_test_set", {})
    if len(by_test_set) > 1:
        metric = metric_named(result["metric"]["name"])
        forms = list(next(iter(by_test_set.values())))
        headers = ["test set", "examples", *(form.replace(MERGED, result["method"]) for form in forms)]
        table = TextTable(metric.heading, headers)
        for name, scores in by_test_set.items():
            cells = [metric.shown(scores[form][metric.name]) for form in forms]
            table.rows.append([name, f"{result['metric']['examples'][name]:,}", *cells])
        console.print(table)
    lines = [parameters(result)]
    for number, one in enumerate(result.get("samples", ()), start=1):
        lines.append(f"held-out conversation {number}: {_short(one['prompt'])}")
        lines += [f"  {name:<8}  {_short(one[name])}" for name in ("expected", "before", "after")]
    chosen, took = result["metric"]["selected_by"], result["time"]
    lines.append(
        f"best epoch {chosen['epoch']:g} of {result['recipe']['training']['epochs']}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} examples/s"
    )
    for line in lines:
        console.print(line, highlight=False)


def parameters(result: Result) -> str:
    """A line about what was trained."""
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"


def rate(value: float) -> str:
    """A number a second, for people: of a large model on a CPU it is below 1."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"
