"""The bar over many runs."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from aurora_lora.lab.experiments import progress as progress_module
from aurora_lora.lab.experiments.jobs import Job, Outcome
from aurora_lora.lab.experiments.progress import Overall

RESULT: Any = {"metric": {"selected_by": {"name": "accuracy", "value": 0.5}}, "time": {"train_s": 60}}
JOB = Job("a", SimpleNamespace(), Path("a"))  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [40, 0])
def test_time_left_is_reckoned_from_the_runs_that_were_run_now(monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    """40 of 50 runs are finished before, whether that was known at the start or not; then each takes a minute."""
    now = [0.0]
    own = progress_module.Progress

    def with_clock(*columns: Any, **options: Any) -> Any:
        return own(*columns, **options, get_time=lambda: now[0])

    monkeypatch.setattr(progress_module, "Progress", with_clock)
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Overall(console, "suite", 50, known) as bar:
        (task,) = bar.progress.tasks
        assert task.fields["ended"] == f"{known}/50 runs"
        for _ in range(40):
            now[0] += 0.01
            bar(Outcome(JOB, RESULT, was_there=True))
        assert (task.completed, task.fields["ended"], task.time_remaining) == (40, "40/50 runs", None)
        for _ in range(3):
            now[0] += 60
            bar(Outcome(JOB, RESULT))
        bar(Outcome(JOB, error="diverged"))
        assert (task.completed, task.fields["ended"]) == (44, "44/50 runs")
        assert task.time_remaining == pytest.approx(6 * 40, rel=0.01)  # three in the two minutes after the first


def test_the_bar_gives_way_to_another() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Overall(console, "suite", 2) as bar:
        with bar.paused():
            assert not bar.progress.live.is_started
        assert bar.progress.live.is_started
