"""What the commands print on: a terminal, a file or a pipe; and how warnings look."""

import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_lora import cli
from aurora_lora.cli import printing
from aurora_lora.cli.printing import print_tables, stdout
from aurora_lora.text_table import TextTable

CHOSEN = "lr 0.0001, highest"
SETTINGS = TextTable(
    "study: 3 runs to tune each",
    ["setting", "params", "chosen", "form", "accuracy %", "neg. log-likelihood"],
    [
        [
            "full fine-tuning of all layers",
            "22,713,216",
            "lr 0.0001, highest",
            "calibrated",
            "80.1 ± 0.5",
            "0.465 ± 0.015",
        ]
    ],
    note="A note.",
    align="lrvlr",
)
NUMBERS = ("22,713,216", "80.1 ± 0.5", "0.465 ± 0.015")


class Terminal(io.StringIO):
    """A terminal as far as `isatty` goes."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO, int], list[str]]:
    """`printed(stream, columns)`: the lines of the table."""

    def lines(stream: io.StringIO, columns: int) -> list[str]:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        print_tables([SETTINGS])
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()  # without bold

    return lines


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_piped_no_line_is_padded_and_no_number_broken(printed: Callable[..., list[str]], columns: int) -> None:
    lines = printed(io.StringIO(), columns)
    text = "\n".join(lines)
    assert all(line == line.rstrip() for line in lines)
    for value in (*NUMBERS, CHOSEN):
        assert value in text
    assert max(map(len, lines)) == SETTINGS.least_width - 1 > 80  # without the blank at its edge


def test_a_terminal_is_used_as_wide_as_it_is(printed: Callable[..., list[str]]) -> None:
    wide = printed(Terminal(), 200)
    assert any("full fine-tuning of all layers" in line and CHOSEN in line for line in wide)
    for columns in (40, 80):
        lines = printed(Terminal(), columns)
        assert max(map(len, lines)) == 80
        assert all(value in "\n".join(lines) for value in NUMBERS)


def test_blanks_within_a_line_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    stdout().print("  a  b   ")
    assert sys.stdout.getvalue() == "  a  b\n"  # type: ignore[attr-defined]


def test_the_command_prints_a_warning_of_this_package_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another package says where it comes from, and so does one of another kind at a line of this one."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back in the end
    expected = warnings.formatwarning("no label", UserWarning, "other.py", 7, "fit(labels)")
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert warnings.formatwarning("no label", UserWarning, printing.__file__, 7) == "aurora: warning: no label\n"
    assert warnings.formatwarning("no label", UserWarning, "other.py", 7, "fit(labels)") == expected
    beside = f"{Path(printing.__file__).parents[1]}_more/file.py"
    assert warnings.formatwarning("no label", UserWarning, beside, 7).startswith(f"{beside}:7: UserWarning: no label")
    outdated = warnings.formatwarning("no label", FutureWarning, printing.__file__, 7, "fit(labels)")
    assert outdated.startswith(f"{printing.__file__}:7: FutureWarning: no label")
    assert "other.py:7: UserWarning: no label" in expected
