"""Errors of the commands: too little GPU memory in one line, others as they are."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import typer
from accelerate import PartialState

from aurora_lora.cli import printing
from aurora_lora.cli.common import plain_errors
from aurora_lora.errors import UserError
from aurora_lora.machine import launched_as_main

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.06 GiB is "
    "free. Including non-PyTorch memory, this process has 14.70 GiB memory in use. Of the allocated memory 14.2 GiB is "
    "allocated by PyTorch.\nSee documentation for Memory Management."
)
SAID = (
    "out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 1.06 GiB is free: "
)


@pytest.fixture(autouse=True)
def not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a command: other tests of this process may have joined others."""
    monkeypatch.setattr(PartialState, "_shared_state", {})


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


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({}, "no such model\n"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "no such model\n"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, ""),
        ({"RANK": "8", "LOCAL_RANK": "0"}, "process 8: no such model\n"),
        ({"RANK": "9", "LOCAL_RANK": "1"}, ""),
        ({"PMI_RANK": "4", "MPI_LOCALRANKID": "0"}, "process 4: no such model\n"),
        ({"OMPI_COMM_WORLD_RANK": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "process 4: no such model\n"),
        ({"RANK": "1"}, ""),
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


def test_torchrun_has_ended_a_process_by_then_or_it_alone_has_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one of a machine ends at once, and with it the others there."""
    waited: list[float] = []
    monkeypatch.setattr(printing.time, "sleep", waited.append)
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    printing.fail("no space left")
    assert waited == [printing.ALONE + 3]
    assert capsys.readouterr().err == "process 3: no space left\n"
    monkeypatch.setenv("LOCAL_RANK", "0")
    printing.fail("no space left")
    assert len(waited) == 1
    monkeypatch.setenv("RANK", "0")
    printing.fail("no space left")
    assert capsys.readouterr().err == "process 3: no space left\nno space left\n"


def test_one_that_a_scheduler_has_started_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU each, in trainings of their own: Accelerate then does not join them, whatever MPI's variables say."""
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setattr(PartialState, "_shared_state", {})
    assert not launched_as_main()
    monkeypatch.setattr(PartialState, "_shared_state", {"process_index": 0})
    monkeypatch.setattr(PartialState, "__init__", lambda self: None)
    monkeypatch.setattr(PartialState, "is_main_process", True)
    assert launched_as_main()


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
