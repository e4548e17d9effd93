"""`aurora train` before it trains: what is checked first."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from aurora_lora import cli
cli.main()
"""


def without_torch(*args: str) -> "subprocess.CompletedProcess[str]":
    """The command, where an import of PyTorch fails."""
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file or directory"), ("a: [1", "line 1"), ("a: 1\na: 2\n", "line 2")]
)
def test_a_file_that_cannot_be_read_is_said_before_pytorch_is_loaded(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    done = without_torch("train", str(path), "--dry-run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(str(path))
    assert message in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("init", "classification"),
        *(("list", what) for what in ("methods", "suites", "recipes", "studies")),
        ("list", "recipe", "demo"),
        ("list", "recipe", "table1/base-lora-rte"),
    ],
)
def test_what_only_reads_files_needs_no_pytorch(args: tuple[str, ...]) -> None:
    done = without_torch(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
