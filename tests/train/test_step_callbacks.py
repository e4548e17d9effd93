"""What is done at the steps of a training."""

from types import SimpleNamespace
from typing import Any

import pytest

from aurora_lora.train.step_callbacks import ExtraCheckpoints


@pytest.mark.parametrize(
    ("strategy", "step", "saves"), [("epoch", 100, False), ("steps", 100, True), ("steps", 300, False)]
)
def test_extra_checkpoints_at_the_end_of_an_epoch(strategy: str, step: int, saves: bool) -> None:
    """Where each epoch is evaluated, its own checkpoint follows; by steps there would be none but the last one."""
    state: Any = SimpleNamespace(global_step=step, epoch=step / 100, max_steps=300)
    control: Any = SimpleNamespace(should_save=False)
    ExtraCheckpoints(100).on_step_end(SimpleNamespace(eval_strategy=strategy), state, control)
    assert control.should_save is saves
