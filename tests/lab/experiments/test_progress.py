"""The bar over many runs."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from aurora_lora.lab.experiments.jobs import Job, Outcome
from aurora_lora.lab.experiments.progress import Overall

RESULT: Any = {"metric": {"selected_by": {"name": "accuracy", "value": 0.5}}, "time": {"train_s": 60}}
JOB = Job("a", SimpleNamespace(), Path("a"))  # type: ignore[arg-type]


def test_runs_that_were_known_to_be_finished_count_once() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Overall(console, "suite", 50, 2) as bar:
        (task,) = bar.progress.tasks
        for was_there in (True, True, True, False):
            bar(Outcome(JOB, RESULT, was_there=was_there))
        assert task.completed == 4  # the two that were known, one more, and one that was run
        with bar.paused():
            assert not bar.progress.live.is_started
        bar.expect(60)
        bar(Outcome(JOB, error="diverged"))
        assert (task.completed, task.total) == (5, 60)
    assert "a: validation accuracy 0.5000, 60 s of training" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "a: failed: diverged" in console.file.getvalue()  # type: ignore[attr-defined]
