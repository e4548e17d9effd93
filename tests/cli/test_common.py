"""What the commands print on: a terminal, a file or a pipe."""

import io
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import typer

from aurora_lora import cli
from aurora_lora.cli import common
from aurora_lora.cli.common import plain_errors, print_tables, stdout
from aurora_lora.errors import UserError
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


# ---------------------------------------------------------------- a GPU with too little memory

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.06 GiB is "
    "free. Including non-PyTorch memory, this process has 14.70 GiB memory in use. Of the allocated memory 14.2 GiB is "
    "allocated by PyTorch.\nSee documentation for Memory Management."
)
SAID = (
    "out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 1.06 GiB is free: "
)


def runs_out(name: str, wrapped: bool) -> Callable[[], None]:
    """A command that finds too little memory, and the library has made an error of its own of that, or not."""

    def command() -> None:
        try:
            raise torch.OutOfMemoryError(FULL)
        except torch.OutOfMemoryError as error:
            if wrapped:
                raise UserError("the model cannot be used: CUDA out of memory") from error
            raise

    command.__name__ = name
    return plain_errors(command)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (
            "train",
            r"halve training\.batch_size and double training\.gradient_accumulation_steps; .*=nf4; or lower",
        ),
        ("sweep", r"halve training\.batch_size .*--dry-run` says what fits"),
        ("predict", "take less with a smaller --batch-size or --dtype bfloat16"),
        ("chat", "take less with --dtype bfloat16 or a smaller --max-new-tokens"),
        (
            "evaluate",
            r"end other programs that use the GPU, or compute without it: CUDA_VISIBLE_DEVICES= aurora \.\.\.",
        ),
    ],
)
def test_too_little_gpu_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str, advice: str, wrapped: bool
) -> None:
    with pytest.raises(typer.Exit) as left:
        runs_out(command, wrapped)()
    assert left.value.exit_code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(SAID)
    assert re.match(advice, said.err.removeprefix(SAID))


def test_any_process_says_that_it_has_too_little(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, which says all else, may have enough."""
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(typer.Exit):
        runs_out("train", False)()
    assert capsys.readouterr().err.startswith(SAID)


def test_other_errors_are_raised_as_they_are() -> None:
    def command() -> None:
        try:
            raise torch.OutOfMemoryError(FULL)
        except torch.OutOfMemoryError:
            raise RuntimeError("a bug") from None

    with pytest.raises(RuntimeError, match="a bug"):
        plain_errors(command)()


def test_an_error_imports_no_torch() -> None:
    code = """
import sys
from aurora_lora.cli import common
from aurora_lora.errors import UserError

def command():
    raise {error}

try:
    common.plain_errors(command)()
except BaseException as error:
    print(type(error).__name__, "torch" in sys.modules)
"""
    for error, raised in (("UserError('no')", "Exit"), ("RuntimeError('no')", "RuntimeError")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(error=error)], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [raised, "False"]


def test_the_command_prints_a_warning_of_this_package_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another package says where it comes from."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back in the end
    expected = warnings.formatwarning("no label", UserWarning, "other.py", 7, "fit(labels)")
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert warnings.formatwarning("no label", UserWarning, common.__file__, 7) == "aurora: warning: no label\n"
    assert warnings.formatwarning("no label", UserWarning, "other.py", 7, "fit(labels)") == expected
    assert "other.py:7: UserWarning: no label" in expected
