"""Errors, warnings and tables of the commands, and their help."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import typer
from accelerate import PartialState
from typer.main import get_command
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.cli.common import plain_errors, plain_warnings
from aurora_lora.errors import UserError
from aurora_lora.machine import launched_as_main

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB.\n"
    "See documentation for Memory Management."
)
COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a command: other tests of this process may have joined others."""
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: False)


@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_gpu_memory_is_one_line(capsys: pytest.CaptureFixture[str], wrapped: bool) -> None:
    def train() -> None:
        try:
            raise torch.OutOfMemoryError(FULL)
        except torch.OutOfMemoryError as error:
            if wrapped:
                raise UserError("the model cannot be used: CUDA out of memory") from error
            raise

    with pytest.raises(typer.Exit) as left:
        plain_errors(train)()
    assert left.value.exit_code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("out of GPU memory: CUDA out of memory: take a smaller training.batch_size ")


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({}, "no such model\n"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, ""),
        ({"RANK": "8", "LOCAL_RANK": "0"}, "no such model\n"),
    ],
)
def test_each_machine_says_once_why_a_command_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ranks: dict[str, str], said: str
) -> None:
    """What is missing on the second machine, the first process cannot tell."""

    def command() -> None:
        raise UserError("no such model")

    for name, rank in ranks.items():
        monkeypatch.setenv(name, rank)
    with pytest.raises(typer.Exit) as left:
        plain_errors(command)()
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == said


def test_one_that_a_scheduler_has_started_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU each, in trainings of their own: Accelerate then does not join them, whatever MPI's variables say."""
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: False)
    assert not launched_as_main()
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: True)
    monkeypatch.setattr(PartialState, "__init__", lambda self: None)
    monkeypatch.setattr(PartialState, "is_main_process", True)
    assert launched_as_main()


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path / "loop")])
    assert done.exit_code == 2, done.output
    assert str(tmp_path / "loop") in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_defect_is_raised_as_it_is() -> None:
    def command() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        plain_errors(command)()


def test_an_error_imports_no_torch() -> None:
    code = """
import sys
from aurora_lora.cli import common
from aurora_lora.errors import UserError

def command():
    raise UserError('no')

try:
    common.plain_errors(command)()
except BaseException as error:
    print(type(error).__name__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Exit", "False"]


def test_the_command_prints_a_warning_of_this_package_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    plain_warnings()
    ours = str(Path(cli.__file__).parents[1] / "deploy" / "gap.py")
    assert warnings.formatwarning("one [line]", UserWarning, ours, 3) == "aurora: warning: one [line]\n"
    assert "elsewhere.py:3" in warnings.formatwarning("one", UserWarning, "elsewhere.py", 3)


def test_help_fits_80_columns_and_usage_has_arguments_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def shown(command: str) -> str:
        return CliRunner().invoke(cli.app, [command, "--help"], prog_name="aurora").stdout

    for command in COMMANDS:
        text = shown(command)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
    usage = {command: re.search(r"Usage: aurora (.*?) *\n", shown(command)) for command in ("train", "report", "list")}
    assert [found and found[1] for found in usage.values()] == [
        "train [OPTIONS] RECIPE [KEY=VALUE]...",
        "report [OPTIONS] RUNS...",
        "list [OPTIONS] WHAT [NAME]",
    ]
