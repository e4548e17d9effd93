"""What a person sees of a training that runs."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from aurora_lora.train.trainer import ProgressBar


@pytest.mark.parametrize(("seconds", "lines"), [(4, 3), (0.5, 0)])
def test_without_a_terminal_a_line_says_every_ten_seconds_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    written = io.StringIO()
    bar = ProgressBar(Console(file=written), "aurora")
    bar.progress.get_time = lambda: clock.now
    args: Any = SimpleNamespace(num_train_epochs=2)
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=8, epoch=0)
    control: Any = None
    bar.on_train_begin(args, state, control)
    for step in range(1, 7):
        clock.now += seconds
        state.global_step, state.epoch = step, step / 4
        bar.on_log(args, state, control, {"loss": 0.5})
        bar.on_step_end(args, state, control)
    for _ in range(3):
        clock.now += seconds
        bar.on_prediction_step(args, state, control, eval_dataloader=[0, 1, 2])
    said = written.getvalue().splitlines()
    assert len(said) == lines
    if lines:
        assert said[0] == "aurora: epoch 1/2 loss 0.500, step 3 of 8, 0:00:20 left"
        assert said[2].startswith("aurora: scoring, batch 3 of 3, ")
