"""What the commands print on, and how: tables, JSON, lines on stderr."""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from aurora_lora.machine import launched_as_main, place_of_launch

if TYPE_CHECKING:
    from aurora_lora.text_table import TextTable

WIDTH = 80
ALONE = 5.0
"""Seconds in which torchrun ends a process that has failed as the first one of its machine has."""


class _WithoutBlanks:
    """A file or a pipe that gets no blanks at the end of a line, with which a console fills its width."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> Any:
        return self._stream.write(re.sub(" +(?=\n)", "", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stdout() -> Console:
    """What is printed there has texts, names and paths of the user's: brackets in them are no markup.

    As wide as the terminal, but no narrower than `WIDTH`, which it is in a file or a pipe.
    """
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    if sys.stdout.isatty():
        return Console(width=max(WIDTH, get_terminal_size((WIDTH, 0)).columns), **plain)
    return Console(file=cast(IO[str], _WithoutBlanks(sys.stdout)), width=WIDTH, **plain)


def print_tables(tables: Iterable[TextTable]) -> None:
    """Tables on stdout. No number in them is broken where nothing sets the width: in a file or a pipe."""
    for table in tables:
        console = stdout()
        if not sys.stdout.isatty():
            console.width = max(console.width, table.least_width)
        console.print(table)


def stderr() -> Console:
    """The console for notes and errors; silent in other processes than the one that prints."""
    return Console(stderr=True, quiet=not launched_as_main(), markup=False, emoji=False, highlight=False)


def print_json(value: Any) -> None:
    from aurora_lora.files import json_text

    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json_text(value, ascii_only=not is_utf8))


def complain(text: str) -> None:
    """A line on stderr, of the main process alone."""
    if launched_as_main():
        print(text, file=sys.stderr)


def fail(text: str) -> None:
    """Why a command ends, on stderr: of the main process, and with its rank of another that alone may have failed.

    That is the first of each other machine, which may lack what the main one has; and under torchrun any process that
    is not ended soon, as it is where the first one of its machine has failed, too.
    """
    if launched_as_main():
        print(text, file=sys.stderr)
        return
    rank, on_its_machine = place_of_launch()
    if on_its_machine != 0:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        try:
            time.sleep(ALONE + (on_its_machine or 0))
        except KeyboardInterrupt:
            return
    print(f"process {rank}: {text}", file=sys.stderr)


def plain_warnings() -> None:
    """Print a warning at a line of this package as one line; others as Python does, which says whose they are."""
    ours, as_python_does = Path(__file__).parents[1], warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(ours):
            return f"aurora: warning: {message}\n"
        return as_python_does(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def note(text: str, style: str | None = None) -> None:
    """A line on stderr, as long as it is, beside what the command gives."""
    stderr().print(text, style=style, soft_wrap=True)


def say_written(paths: Iterable[Path]) -> None:
    stdout().print("wrote " + ", ".join(map(str, paths)), soft_wrap=True)
