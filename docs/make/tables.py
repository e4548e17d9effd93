"""Tables of docs/, from records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aurora_lora.data import TASKS, Task
from aurora_lora.data.metrics import metric_named
from aurora_lora.files import NOT_FINITE
from aurora_lora.lab.report.study import study_tables
from aurora_lora.lab.report.tables import count, spread
from aurora_lora.text_table import TextTable
from aurora_lora.train.finished_run import task_chance
from aurora_lora.train.kind_facts import facts_of


def tasks_table(tasks: Iterable[Task]) -> str:
    """What there is to train on: for docs/tasks.md."""
    table = TextTable("", ["task", "what is asked", "train", "scored on", "metrics", "source"], align="l")
    for task in tasks:
        whole = "" if task.train_examples is None else f"{task.train_examples:,}"
        metrics = ", ".join(facts_of(task).metric_names(task))
        cells = [f"`{task.name}`", task.description, whole, _scored_on(task), metrics, task.source]
        table.rows.append(cells)
    return table.markdown()


def _scored_on(task: Task) -> str:
    if task.test_sets == ("validation",):
        return "validation"
    if task.test_sets == ("test",):
        held_out = f"test {task.sizes.test:,}" if task.sizes.test else "test"
        return f"{held_out}; validation {task.sizes.validation:,}" if task.sizes.validation else held_out
    return ", ".join(task.test_sets)


def reproduced_table(record: Mapping[str, Any]) -> str:
    """A suite's scores, a row for each method: the `table.json` of `aurora reproduce`, for docs/studies/."""
    cells = record["cells"]
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    table = TextTable("", ["method", "trained parameters", *columns])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault((cell["group"], cell["row"]), {})[cell["column"]] = cell
    guessed = {column: _guessed(column) for column in columns}
    seeds = len(record["seeds"])
    for (_, name), found in rows.items():
        least = [cell["params"] for cell in found.values() if cell["params"] is not None]
        most = [cell["most_params"] for cell in found.values() if cell.get("most_params") is not None]
        shown = [
            count(min(least), max([*least, *most])) if least else "",
            *(_reproduced(found.get(column), seeds) for column in columns),
        ]
        table.rows.append([name, *shown])
    if any(guessed.values()):
        table.rows.append(["uniform guessing", "", *guessed.values()])
    spread = f"{record['statistic'].capitalize()} ± standard deviation over {seeds} seeds"
    what = spread if seeds > 1 else "One seed"
    table.note = f"{what}; the head is not among the parameters."
    return table.markdown("---:")


def _guessed(column: str) -> str:
    """The accuracy of uniform guessing on the packaged task of a column: `cifar10-10k` is called CIFAR10."""
    named = next((name for name in TASKS if re.fullmatch(rf"{re.escape(column.casefold())}(-\d+k)?", name)), "")
    known = TASKS.get(named)
    chance = task_chance(named) if known is not None and known.metric == "accuracy" else {}
    return metric_named("accuracy").shown(chance["accuracy"]) if chance else ""


def _reproduced(cell: Mapping[str, Any] | None, seeds: int) -> str:
    if cell is None or cell["ours"] is None:
        return ""
    spread = "" if cell["spread"] is None else f" ± {cell['spread']:.1f}"
    missing = f" ({len(cell['scores'])} of {seeds} seeds)" if cell["missing"] else ""
    return f"{cell['ours']:.1f}{spread}{missing}"


def causal_lm_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Perplexity by form and learning rate: `benchmarks/causal_lm.py`."""
    forms = list(dict.fromkeys(form for result in results for form in result["by_form"]))
    table = TextTable("", ["learning rate", "without adapter", *forms], align="l")
    for rate in sorted({result["learning_rate"] for result in results}):
        runs = [result for result in results if result["learning_rate"] == rate]
        cells = [f"{rate:g}", spread([run["base"]["perplexity"] for run in runs], 2)]
        for form in forms:
            values = [run["by_form"][form]["perplexity"] for run in runs if form in run["by_form"]]
            cells.append(spread(values, 2) if values else "")
        table.rows.append(cells)
    return table.markdown()


def qlora_table(distances: Mapping[str, Mapping[str, float | None]]) -> str:
    """How far two models' predictions are apart: `examples/qlora.py`."""
    table = TextTable("", ["", "KL divergence", "largest difference of a log-probability"], align="l")
    for name, values in distances.items():
        kl, largest = values["kl"], values["largest"]
        cells = [name, NOT_FINITE if kl is None else f"{max(kl, 0.0):.5f}"]  # rounding may give -1e-8
        cells.append(NOT_FINITE if largest is None else f"{largest:.2g}")
        table.rows.append(cells)
    return table.markdown()


def versions_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """What the unit tests gave with other versions, and what was skipped in some environments only: `make versions`."""
    shown = ("python", "torch", "peft", "transformers", "numpy")
    table = TextTable(
        "", ["Python", "torch", "peft", "transformers", "NumPy", "passed", "skipped", "failed"], align="l"
    )
    for record in records.values():
        versions = record.get("versions", record)
        cells = [versions.get(name, "") for name in shown]
        if "problem" in record:
            cells += [f"not run: {record['problem']}", "", ""]
        else:
            cells += [f"{record[name]:,}" for name in ("passed", "skipped", "failed")]
        table.rows.append(cells)
    tested = {name: record for name, record in records.items() if "skips" in record}
    reasons = dict.fromkeys(reason for record in tested.values() for reason in record["skips"])
    everywhere = [reason for reason in reasons if all(reason in record["skips"] for record in tested.values())]
    some = [reason for reason in reasons if reason not in everywhere]
    lines = [table.markdown(), "", f"Skipped in all: {'; '.join(everywhere) or 'nothing'}.", *([""] if some else [])]
    for reason in some:
        count = sum(reason in record["skips"] for record in tested.values())
        lines.append(f"- Skipped in {count} of {len(tested)}: {reason}")
    failures = {test: why for record in tested.values() for test, why in record["failures"].items()}
    for test, why in failures.items():
        where = [name for name, record in tested.items() if test in record["failures"]]
        lines.append(f"- Failed with {'; '.join(where)}: `{test}`: {why}")
    return "\n".join(lines)


def lengths_table(record: Mapping[str, Any]) -> str:
    """The length of the update after the last epoch, and of the trajectory to it, over the seeds, as Markdown.

    Args:
        record: of `trajectories`.
    """
    table = TextTable("", ["", "length of the update", "length of the trajectory in the figure"])
    for label in dict.fromkeys(run["label"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["label"] == label]
        steps = [np.linalg.norm(np.diff(np.asarray(run["points"]), axis=0), axis=1).sum() for run in runs]
        table.rows.append([label, spread([run["norms"][-1] for run in runs], 1), spread(steps, 1)])
    return table.markdown()


def settings_left(summary: Mapping[str, Any], settings: Iterable[str]) -> str:
    """A line on the settings of a study's recipe that its results lack; empty if there are none.

    Args:
        summary: `study.json`.
        settings: the names in the recipe.
    """
    there = {setting["name"] for setting in summary["settings"]}
    left = [name for name in settings if name not in there]
    return f"Settings of the recipe that have no results yet: {', '.join(left)}." if left else ""


def study_page(summary: Mapping[str, Any]) -> str:
    """The study as Markdown: the answers, if it asks anything, then every setting in every form."""
    *answers, scores = (table.markdown() for table in study_tables(summary, full=True))
    return "\n\n".join([*(["## Answers", *answers] if answers else []), "## Scores", scores])


SMALL_SETS = {
    "topics": "topics, 4 classes",
    "reviews": "reviews, 2 classes",
    "tweets": "tweets, 3 classes",
    "ratings": "ratings of films, correlation",
    "choices": "choices, 2 options",
    "images": "digits, 10 classes",
}
"""What the six sets of benchmarks/small_sets.py are called in the table."""


def small_sets_table(records: Iterable[Mapping[str, Any]]) -> str:
    """What the defaults learn from a few rows: the records of benchmarks/small_sets.py, for docs/your-data.md."""
    ours: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        ours.setdefault(record["set"], []).append(record)
    table = TextTable("", ["task", "rows", "guessing", "fitted to frozen features", "LoRA, r = 8", "AuroRA, r = 2"])
    for name, title in SMALL_SETS.items():
        runs = ours[name]
        rows = runs[0]["examples"]["train"] + runs[0]["examples"]["validation"]

        def cell(field: str, method: str, runs: list[Mapping[str, Any]] = runs) -> str:
            values = [run[field] for run in runs if run["method"] == method and field in run]
            return spread(values, 1, 100) if values else ""

        shown = [cell("baseline", "aurora"), cell("features", "aurora"), cell("score", "lora"), cell("score", "aurora")]
        table.rows.append([title, str(rows), *shown])
    return table.markdown()
