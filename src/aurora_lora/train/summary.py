"""The table at the end of a run, 80 columns wide."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..data.metrics import metric_named
from ..forms import MERGED
from ..text_table import TextTable
from .finished_run import FinishedRun
from .publish import ADAPTER, DATA, LOGS, LORA, RECIPE, REFERENCE, RESULT, SPLITS
from .results import Result, Scores
from .score_tables import examples_scored, run_table, score_table, shown_table


def print_run(console: Console, run: FinishedRun) -> None:
    """Scores of every form beside the reference, parameter counts, and what was written."""
    result = run.result
    print_table(console, f"{result['task']}: {examples_scored(result)}", run_table(result, run.reference))
    if len(by_test_set := result["metric"].get("by_test_set", {})) > 1:
        _print_test_sets(console, result, by_test_set)
    console.print(parameters(result), highlight=False)
    for number, one in enumerate(result.get("samples", ()), start=1):
        console.print(f"held-out conversation {number}: {_short(one['prompt'])}", highlight=False)
        for name in ("expected", "before", "after"):
            console.print(f"  {name:<8}  {_short(one[name])}", highlight=False)
    chosen, took = result["metric"]["selected_by"], result["time"]
    console.print(
        f"best epoch {chosen['epoch']:g} of {result['recipe']['training']['epochs']}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} examples/s",
        highlight=False,
    )
    for path in written(run):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def rate(value: float) -> str:
    """A number a second, for people: of a large model on a CPU it is below 1."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _short(text: str) -> str:
    """In one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"


def _print_test_sets(console: Console, result: Result, by_test_set: dict[str, Scores]) -> None:
    """The main metric of each form on each test set; a row for each set."""
    metric = metric_named(result["metric"]["name"])
    forms = list(next(iter(by_test_set.values())))
    table = TextTable("", ["test set", "examples", *(form.replace(MERGED, result["method"]) for form in forms)])
    for test_set, scores in by_test_set.items():
        cells = [metric.shown(scores[form][metric.name]) for form in forms]
        table.rows.append([test_set, f"{result['metric']['examples'][test_set]:,}", *cells])
    print_table(console, metric.heading, table)


def print_scores(console: Console, title: str, method: str, scores: Scores, deployed: str) -> None:
    """The table alone, for `aurora evaluate`."""
    print_table(console, title, score_table(method, scores, deployed))


def written(run: FinishedRun) -> list[Path]:
    """What a run leaves behind."""
    paths = [run.folder / name for name in (RECIPE, DATA, SPLITS, ADAPTER, LORA, LOGS, RESULT)]
    if run.reference is not None:
        paths.append(run.folder / REFERENCE)
    return [path for path in paths if path.exists()]  # not every adapter has a plain LoRA beside it


def print_table(console: Console, title: str, table: TextTable) -> None:
    """A table of scores."""
    console.print(shown_table(title, table, console.width))


def parameters(result: Result) -> str:
    """A line about what was trained."""
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"
