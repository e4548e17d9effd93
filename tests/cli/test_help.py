"""The help of each command, and where a mistake in the arguments sends its reader."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.cli.help import reflowed

COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]
Shown = Callable[..., str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """`shown("train", columns=40)` is the help of a command, without the edges of boxes."""

    def help_of(*command: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        done = CliRunner().invoke(cli.app, [*command, "--help"], prog_name="aurora")
        assert done.exit_code == 0, done.output
        return "\n".join(line.strip("│ ") for line in done.stdout.splitlines())

    return help_of


def usage(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("Usage: "))


@pytest.mark.parametrize("command", COMMANDS)
def test_paragraphs_fill_their_lines(shown: Shown, command: str) -> None:
    """No line ends where the next word had room; a docstring's own line breaks would."""
    paragraphs = shown(command).split("╭")[0].split("\n\n")[1:]
    for lines in (paragraph.splitlines() for paragraph in paragraphs):
        for line, after in pairwise(filter(str.split, lines)):
            assert len(f"{line} {after.split()[0]}") > 76


def test_lists_and_blocks_keep_their_lines() -> None:
    text = "One line\nmore of it.\n\n- a\n- b\n\n\b\n$ aurora\n$ aurora\n\nThe\nend."
    assert reflowed(text) == "One line more of it.\n\n- a\n- b\n\n\b\n$ aurora\n$ aurora\n\nThe end."


def test_usage_has_arguments_as_they_are_typed(shown: Shown) -> None:
    assert usage(shown("train")) == "Usage: aurora train [OPTIONS] RECIPE [KEY=VALUE]..."
    assert usage(shown("generate")) == "Usage: aurora generate [OPTIONS] DIR PROMPT..."
    assert usage(shown("report")) == "Usage: aurora report [OPTIONS] RUNS..."
    assert usage(shown("list")) == "Usage: aurora list [OPTIONS] WHAT [NAME]"


@pytest.mark.parametrize("columns", [40, 80])
def test_flags_have_no_type_and_counts_are_named_as_the_help_names_them(shown: Shown, columns: int) -> None:
    for command in ((), *((name,) for name in COMMANDS)):
        text = shown(*command, columns=columns)
        assert not re.search(r"<(bool|list|path|dir)", text.lower()), command
    for command in ("gap", "sigma"):
        assert re.search(r"--examples +N ", shown(command, columns=columns))


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_a_narrow_terminal_cuts_nothing(shown: Shown, command: tuple[str, ...]) -> None:
    def words(text: str) -> set[str]:
        return {word.strip("[]*:;.") for word in re.sub(r"[╭╮╰╯─,│]|--?\w*", " ", text).split()}

    narrow = shown(*command, columns=40)
    assert "…" not in narrow
    assert "╭" not in narrow
    assert max(map(len, narrow.splitlines())) <= 40
    letters = "".join(narrow.split())  # the longest words are broken
    assert not {word for word in words(shown(*command)) if word not in letters}


def said(*args: Any) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    return done.exit_code, done.stderr


def test_a_mistake_in_the_arguments_names_the_help_to_see() -> None:
    assert said("train") == (2, "Missing argument 'RECIPE'. See `aurora train --help`.\n")
    assert said("train", "demo") == (2, "Missing option '--output' / '-o'. See `aurora train --help`.\n")
    code, text = said("gap", "run", "--examples", "many")
    assert (code, text.endswith(". See `aurora gap --help`.\n"), text.count("\n")) == (2, True, 1)
    assert said("trian")[1].endswith(" See `aurora --help`.\n")


@pytest.mark.parametrize("columns", [40, 50, 60, 62, 70])
def test_nothing_is_cut_at_any_width(shown: Shown, columns: int) -> None:
    text = shown("chat", columns=columns)  # which has the longest option
    assert "--max-new-tokens" in text
    assert "…" not in text
