"""What a person sees of a run: a bar on stderr for whatever takes long, and a line for each validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import Progress, TaskID

from ..train.progress import bar, quiet_libraries


class Watcher(Protocol):
    """Is told what a run does."""

    def begin(self, what: str, total: int, done: int = 0) -> Callable[[str], None]:
        """Something of `total` steps begins, of which some may be done; gives what to call after each, with a note."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def end(self) -> None:
        """What was begun last is over."""


class SilentWatcher:
    """Watches nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> Callable[[str], None]:
        return lambda note: None

    def say(self, line: str) -> None:
        pass

    def end(self) -> None:
        pass


class Bars:
    """Draws on a console; bars within bars, the outer one on top.

    Args:
        console: stderr, so that stdout stays free for results.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.under_way: list[TaskID] = []

    def begin(self, what: str, total: int, done: int = 0) -> Callable[[str], None]:
        if self.progress is None:
            self.progress = bar(self.console)
            self.progress.start()
        progress, task = self.progress, self.progress.add_task(what, total=total, completed=done, note="")
        self.under_way.append(task)
        return lambda note: progress.update(task, advance=1, note=note)

    def say(self, line: str) -> None:
        console = self.console if self.progress is None else self.progress.console
        console.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self.progress is not None and self.under_way:
            self.progress.remove_task(self.under_way.pop())
        if not self.under_way:
            self.stop()

    def stop(self) -> None:
        """Take the bars off the screen."""
        if self.progress is not None:
            self.progress.stop()
            self.progress, self.under_way = None, []


def quiet() -> None:
    """Switch off the progress bars and warnings of the libraries underneath."""
    quiet_libraries()
    warnings.filterwarnings("ignore", module=r"diffusers(\.|$)")
    try:
        from diffusers.utils import logging as diffusers_logging
    except ImportError:
        return  # said when it is needed
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
