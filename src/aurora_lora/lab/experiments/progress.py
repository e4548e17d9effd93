"""What a person sees of many runs: one bar over all of them with the time left, and a line for each that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...files import NOT_FINITE
from .jobs import Outcome


class Overall:
    """The bar. Time left is reckoned from the runs that were run now: those that were finished before took no time.

    Args:
        console: where to draw; stderr, so that stdout stays free for results.
        title: what is run.
        runs: how many runs there are.
        finished: how many of them are known to be finished already.
    """

    def __init__(self, console: Console, title: str, runs: int, finished: int = 0) -> None:
        self.console, self.runs, self.counted = console, runs, finished
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[ended]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=24 * 3600,
        )
        self.bar = self.progress.add_task(title, total=runs, completed=finished, ended=f"{finished}/{runs} runs")

    def __enter__(self) -> Overall:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the screen to another bar."""
        self.progress.stop()
        try:
            yield
        finally:
            self.progress.start()

    def expect(self, runs: int) -> None:
        """Another number of runs, where that shows on the way only."""
        self.runs = runs
        self.progress.update(self.bar, total=runs)

    def __call__(self, outcome: Outcome) -> None:
        """Count an outcome, and print its line."""
        (task,) = self.progress.tasks
        if not outcome.was_there:
            self.progress.update(self.bar, advance=1)
        elif self.counted:
            self.counted -= 1
        else:
            task.completed += 1  # not by `update`, which would count it as speed
        self.progress.update(self.bar, ended=f"{task.completed:g}/{self.runs} runs")
        where = self.progress.console if not self.progress.disable else self.console
        where.print(f"{outcome.job.name}: {_line(outcome)}", highlight=False, markup=False, soft_wrap=True)


def _line(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    metric, took = outcome.result["metric"], outcome.result["time"]["train_s"]
    chosen = metric["selected_by"]
    value = NOT_FINITE if chosen["value"] is None else f"{chosen['value']:.4f}"
    return f"validation {chosen['name']} {value}, {took:.0f} s of training"
