"""Locks: of one process at a time, gone with it, and tolerated where a file system has none."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.data import models as gguf
from aurora_lora.data.fetch import Archive, fetch
from aurora_lora.errors import UserError
from aurora_lora.files import held
from aurora_lora.lab.experiments.jobs import in_turn
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.experiments.sweep import Sweep
from aurora_lora.train import run

HOLD = """
import pathlib, sys
from aurora_lora.files import held
with held(pathlib.Path(sys.argv[1])):
    print(flush=True)
    input()
"""
ARCHIVE = Archive("a==1", "wheel", "0" * 64, {"a": "a"}, "a model", 1.0, "MIT")
USERS: dict[str, Callable[[Path], Any]] = {
    "fetch": lambda folder: fetch(ARCHIVE),
    "gguf": lambda folder: gguf.converted(folder, "a.gguf"),
    "pretrain": lambda folder: run.pretrain("vit-fashion-mnist"),
    "sweep": lambda folder: Sweep(load_study("layers"), folder, in_turn),
}
"""Who takes locks, each without the work that it does under them."""


def test_a_killed_process_lets_go_of_what_another_waits_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with held(tmp_path / ".lock", holder.kill):
            assert holder.wait() != 0


def test_what_is_raised_instead_of_waiting(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("not now")

    with held(tmp_path / ".lock"), pytest.raises(UserError, match="not now"), held(tmp_path / ".lock", refuse):
        pass
    with held(tmp_path / ".lock", refuse):
        pass


def test_nobody_waits_for_a_folder_that_cannot_be_written() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("/proc is a file system of Linux")
    with pytest.raises(UserError, match=r"^cannot write /proc: "), held(Path("/proc/.x.lock")):
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("user", USERS)
def test_without_locks_on_a_file_system_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """A file in place of the lock, which filelock warns of, would be there after a kill, and waited for."""
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "cache"))
    for name in ("data.fetch._fetch", "data.models._convert", "train.run._make"):
        monkeypatch.setattr(f"aurora_lora.{name}", lambda *_: None)
    with warnings.catch_warnings(action="error"):
        USERS[user](tmp_path)
