"""What a person sees while it runs: a progress bar on stderr, one line for each evaluation, and no library chatter."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

BAR_AFTER = 2.0
"""Seconds that an evaluation may take before it gets a bar of its own."""


class ProgressBar(TrainerCallback):
    """Shows training and longer evaluations. Other processes than the main one show nothing.

    Args:
        console: where to draw; stderr, so that stdout stays free for results.
        title: what is trained.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.progress: Progress | None = None
        self.training: TaskID | None = None
        self.scoring: TaskID | None = None
        self.batches = 0
        self.since = 0.0
        self.loss = ""
        self.before: Callable[[], None] = lambda: None
        """Called before anything is shown."""

    def say(self, lines: Iterable[str]) -> None:
        """Print lines about what is trained."""
        self.before()
        for line in lines:
            self.console.print(f"{self.title}: {line}", highlight=False, soft_wrap=True)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.before()
        if not state.is_world_process_zero:
            return
        if 0 < state.global_step < state.max_steps:
            self.console.print(f"{self.title}: going on from epoch {state.epoch:.4g} of {args.num_train_epochs:g}")
        self._start()
        assert self.progress is not None
        self.training = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.progress is not None and self.training is not None:
            epoch = min(int(state.epoch or 0) + 1, int(args.num_train_epochs))
            note = f"epoch {epoch}/{args.num_train_epochs:g} {self.loss}"
            self.progress.update(self.training, completed=state.global_step, note=note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.batches += 1
        if self.batches == 1:
            self.since = time.monotonic()
        elif self.scoring is None and time.monotonic() - self.since > BAR_AFTER:
            self._start()
            assert self.progress is not None
            self.scoring = self.progress.add_task("scoring", total=len(kwargs["eval_dataloader"]), note="")
        if self.scoring is not None and self.progress is not None:
            self.progress.update(self.scoring, completed=self.batches)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.batches = 0
        if self.progress is not None and self.scoring is not None:
            self.progress.remove_task(self.scoring)
            self.scoring = None
        if self.training is None:
            self.stop()
        name = f"eval_{args.metric_for_best_model}"
        if state.is_world_process_zero and self.training is not None and metrics and name in metrics:
            shown = self.progress.console if self.progress is not None else self.console
            shown.print(
                f"{self.title}: epoch {state.epoch:.4g} of {args.num_train_epochs:g}, "
                f"validation {args.metric_for_best_model} {metrics[name]:.4f}, {self.loss}",
                highlight=False,
            )

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.training = None
        self.stop()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _start(self) -> None:
        if self.progress is None:
            self.progress = bar(self.console)
            self.progress.start()


def bar(console: Console) -> Progress:
    """A progress bar with a field `note`; nothing is drawn where the console is no terminal.

    Args:
        console: where it is drawn.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def quiet_libraries() -> None:
    """Switch off the progress bars, load reports and warnings of the libraries underneath; ours are still shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import huggingface_hub
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    if sys.stderr.isatty():
        bars: Any = huggingface_hub.utils
        bars.enable_progress_bars()  # of downloads
    for name in ("accelerate", "bitsandbytes", "datasets", "torch.distributed", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
