"""Optuna's journal of a study's trials, which several processes append to, each of which may be killed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ...locks import held

JOURNAL = "journal.log"
"""The file in a study's folder with what was tried."""


def open_journal(path: Path) -> JournalStorage:
    """The storage of a journal file, which is made if it is not there."""
    lock: Any = JournalLock(path)  # Optuna asks for these two methods alone
    return JournalStorage(JournalFileBackend(str(path), lock))


class JournalLock:
    """What a process holds while it appends to Optuna's journal.

    Optuna's own locks outlive a process that is killed with one.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self._held = journal, ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(held(self.journal.with_name(f".{self.journal.name}.lock")))
        self._remove_half_a_line()
        return True

    def release(self) -> None:
        self._held.close()

    def _remove_half_a_line(self) -> None:
        """What a full disk or a kill has left: what is appended to it could never be read again."""
        with self.journal.open("r+b") as file:
            whole = file.read()
            if not whole.endswith(b"\n"):
                file.truncate(whole.rfind(b"\n") + 1)
