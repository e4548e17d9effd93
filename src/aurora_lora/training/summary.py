"""The table at the end of a run, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..methods import MERGED
from .results import Result, Scores
from .run import ADAPTER, REFERENCE, Run

FORM_NAMES = {
    "dynamic": "trained (dynamic)",
    "static": "static (the paper's merge)",
    "calibrated": "calibrated merge",
}
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy %", lambda value: f"{100 * value:.1f}"),
    "nll": ("neg. log-likelihood", lambda value: f"{value:.3f}"),
    "matthews": ("Matthews", lambda value: f"{value:.3f}"),
    "f1": ("F1 %", lambda value: f"{100 * value:.1f}"),
    "pearson": ("Pearson", lambda value: f"{value:.3f}"),
    "spearman": ("Spearman", lambda value: f"{value:.3f}"),
    "mse": ("mean squared error", lambda value: f"{value:.3f}"),
}


def print_run(console: Console, run: Run) -> None:
    """Scores of every form beside the reference, parameter counts, and what was written."""
    result, reference = run.result, run.reference
    rows = _rows(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if reference is not None:
        rows += _rows(reference["method"], reference["metric"]["by_form"], None)
    _print_table(console, _title(result), rows)
    if by_test_set := result["metric"].get("by_test_set"):
        _print_test_sets(console, result, by_test_set)
    console.print(_parameters(result), highlight=False)
    chosen, took = result["metric"]["selected_by"], result["time"]
    console.print(
        f"best epoch {chosen['epoch']:g} of {result['recipe']['training']['epochs']}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {took['samples_per_s']:.0f} examples/s",
        highlight=False,
    )
    for path in written(run):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _title(result: Result) -> str:
    metric = result["metric"]
    sets = list(metric.get("by_test_set", {}))
    if sets:
        return f"{result['task']}: mean of {len(sets)} test sets"
    # results of earlier versions have the size in their recipe only
    size = metric["examples"][metric["split"]] if "examples" in metric else result["recipe"]["task"]["test_size"]
    return f"{result['task']}: {size:,} {metric['split']} examples"


def _print_test_sets(console: Console, result: Result, by_test_set: dict[str, Scores]) -> None:
    """The main metric of each form on each test set; a row for each set."""
    name = result["metric"]["name"]
    heading, shown = _COLUMNS[name]
    table = Table(title=heading, title_justify="left")
    table.add_column("test set")
    table.add_column("examples", justify="right")
    forms = list(next(iter(by_test_set.values())))
    for form in forms:
        table.add_column(form.replace("merged", result["method"]), justify="right")
    for test_set, scores in by_test_set.items():
        values = [scores[form][name] for form in forms]
        cells = ["not a number" if value is None else shown(value) for value in values]
        table.add_row(test_set, f"{result['metric']['examples'][test_set]:,}", *cells)
    console.print(table)


def print_scores(console: Console, title: str, method: str, scores: Scores, deployed: str) -> None:
    """The table alone, for `aurora evaluate`."""
    _print_table(console, title, _rows(method, scores, deployed))


def written(run: Run) -> list[Path]:
    """What a run leaves behind."""
    paths = [run.folder / name for name in ("recipe.yaml", ADAPTER, "result.json")]
    return [*paths, run.folder / REFERENCE] if run.reference is not None else paths


def _rows(method: str, scores: Scores, deployed: str | None) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for form, metrics in scores.items():
        name = method.replace("-", " ") if form == MERGED else FORM_NAMES.get(form, form)
        rows.append((f"{name}, deployed" if form == deployed and len(scores) > 1 else name, metrics))
    return rows


def _print_table(console: Console, title: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    metrics = [name for name in _COLUMNS if name in rows[0][1]]
    table = Table(title=title, title_justify="left")
    table.add_column("form")
    for metric in metrics:
        table.add_column(_COLUMNS[metric][0], justify="right")
    for name, values in rows:
        shown = (
            "not a number" if values[metric] is None else _COLUMNS[metric][1](values[metric]) for metric in metrics
        )
        table.add_row(name, *shown, style="bold" if name.endswith("deployed") else None)
    console.print(table)


def _parameters(result: Result) -> str:
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"
