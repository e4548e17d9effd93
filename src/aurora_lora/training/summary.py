"""The table at the end of a run, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..methods import MERGED, UNMERGED
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
    "pearson": ("Pearson", lambda value: f"{value:.3f}"),
    "mse": ("mean squared error", lambda value: f"{value:.3f}"),
}


def print_run(console: Console, run: Run) -> None:
    """Scores of every form beside the reference, parameter counts, and what was written."""
    result, reference = run.result, run.reference
    size = result["recipe"]["task"]["test_size"]
    rows = _rows(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if reference is not None:
        rows += _rows(reference["method"], reference["metric"]["by_form"], None)
    _print_table(console, f"{result['task']}: {size:,} test examples", rows)
    console.print(_parameters(result), highlight=False)
    chosen, took = result["metric"]["selected_by"], result["time"]
    console.print(
        f"best epoch {chosen['epoch']:g} of {result['recipe']['training']['epochs']}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {took['samples_per_s']:.0f} examples/s",
        highlight=False,
    )
    for path in written(run):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


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
        name = method.replace("-", " ") if form in (MERGED, UNMERGED) else FORM_NAMES.get(form, form)
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
