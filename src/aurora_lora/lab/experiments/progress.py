"""What a person sees of many runs: one bar over all of them, and a line for each that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...files import NOT_FINITE
from .jobs import Outcome


class Overall:
    """The bar.

    Args:
        console: where to draw; stderr, so that stdout stays free for results.
        title: what is run.
        runs: how many runs there are.
        finished: how many of them are known to be finished already, and are not counted again.
    """

    def __init__(self, console: Console, title: str, runs: int, finished: int = 0) -> None:
        self.console, self.known = console, finished
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self.bar = self.progress.add_task(title, total=runs, completed=finished)

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
        self.progress.update(self.bar, total=runs)

    def __call__(self, outcome: Outcome) -> None:
        """Count an outcome, and print its line."""
        is_known = outcome.was_there and self.known > 0
        self.known -= is_known
        self.progress.update(self.bar, advance=0 if is_known else 1)
        where = self.progress.console if not self.progress.disable else self.console
        where.print(f"{outcome.job.name}: {_line(outcome)}", highlight=False, markup=False, soft_wrap=True)


def _line(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    chosen, took = outcome.result["metric"]["selected_by"], outcome.result["time"]["train_s"]
    value = NOT_FINITE if chosen["value"] is None else f"{chosen['value']:.4f}"
    return f"validation {chosen['name']} {value}, {took:.0f} s of training"
