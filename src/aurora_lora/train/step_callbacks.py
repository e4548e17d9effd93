"""What happens between the steps of `aurora train`: early stopping, a clock, checkpoints within an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import termination
from .distributed import asked_to_stop


class EarlyStop(TrainerCallback):
    """Ends the training after `patience` evaluations in a row without a better score. It keeps no state of its own."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_over(args, state):
            control.should_training_stop = True

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the last evaluations of a log were in vain."""
        name, sign = f"eval_{args.metric_for_best_model}", 1 if args.greater_is_better else -1
        scores = [sign * record[name] for record in state.log_history if name in record]
        known = [score for score in scores if not math.isnan(score)]
        return len(scores) - (scores.index(max(known)) + 1 if known else 0) >= self.patience


class EachEpoch(TrainerCallback):
    """Tells something which epoch it is, before each, and before what is left of one that a run goes on with."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.tell(int(state.epoch or 0))


class Clock(TrainerCallback):
    """Counts the seconds of training steps: evaluations, calibrations and checkpoints are left out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        # at an epoch's last step, too: what others do there before the epoch ends is no training
        if control.should_evaluate or control.should_save or float(getattr(state, "epoch", None) or 0.5).is_integer():
            self._stop()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the last step is still under way
            self.seconds += time.perf_counter() - self._since
        self._since = None


class LogFirst(TrainerCallback):
    """Logs the loss before each evaluation and checkpoint: a run that goes on from there could not tell it."""

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate or control.should_save:
            control.should_log = True

    on_epoch_end = on_step_end


class ExtraCheckpoints(TrainerCallback):
    """Checkpoints each N steps, beside those at the evaluations."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 and not _is_saved_anyway(args, state):
            control.should_save = True


class StopWhenAsked(TrainerCallback):
    """After SIGTERM, a checkpoint of the step that it came in, and the end; at an epoch's last step its own one."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if asked_to_stop() and not _is_saved_anyway(args, state):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # not by `should_training_stop`: Trainer would evaluate as at the end of an epoch
        if asked_to_stop():
            termination.stop()


def _is_saved_anyway(args: Any, state: TrainerState) -> bool:
    """Whether an evaluation and its checkpoint follow: one before these would let a resumed run miss them. Such is the
    last step of an epoch, where each is evaluated, and the last one of all."""
    if args.eval_strategy != "epoch":
        return bool(state.global_step >= state.max_steps)
    return state.epoch is not None and float(state.epoch).is_integer()
