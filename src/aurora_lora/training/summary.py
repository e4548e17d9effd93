"""The table at the end of a run, 80 columns wide."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from .results import RESULT, Result, Scores, ScoreTable, score_table
from .run import ADAPTER, LORA, RECIPE, REFERENCE, Run


def print_run(console: Console, run: Run) -> None:
    """Scores of every form beside the reference, parameter counts, and what was written."""
    result, reference = run.result, run.reference
    size = result["recipe"]["task"]["test_size"]
    table = score_table(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if reference is not None:
        table.rows.extend(score_table(reference["method"], reference["metric"]["by_form"], None).rows)
    _print_table(console, f"{result['task']}: {size:,} test examples", table)
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
    _print_table(console, title, score_table(method, scores, deployed))


def written(run: Run) -> list[Path]:
    """What a run leaves behind."""
    paths = [run.folder / name for name in (RECIPE, ADAPTER, LORA, RESULT)]
    if run.reference is not None:
        paths.append(run.folder / REFERENCE)
    return [path for path in paths if path.exists()]  # not every adapter has a plain LoRA beside it


def _print_table(console: Console, title: str, table: ScoreTable) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column("form")
    for metric in table.metrics:
        shown.add_column(metric, justify="right")
    for name, *values in table.rows:
        shown.add_row(name, *values, style="bold" if name.endswith("deployed") else None)
    console.print(shown)


def _parameters(result: Result) -> str:
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"
