"""What a person sees while it runs: a progress bar on stderr, one line for each evaluation, and no library chatter."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState


class ProgressBar(TrainerCallback):
    """Shows training and evaluations. Other processes than the main one show nothing."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.progress = bar(console)
        self.training: TaskID | None = None
        self.scoring: TaskID | None = None
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
        if state.is_world_process_zero:
            if 0 < state.global_step < state.max_steps:
                self.console.print(f"{self.title}: going on from epoch {state.epoch:.4g} of {args.num_train_epochs:g}")
            self.progress.start()
            total, done = state.max_steps, state.global_step
            self.training = self.progress.add_task(self.title, total=total, completed=done, note="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            epoch = min(int(state.epoch or 0) + 1, int(args.num_train_epochs))
            note = f"epoch {epoch}/{args.num_train_epochs:g} {self.loss}"
            self.progress.update(self.training, completed=state.global_step, note=note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            if self.scoring is None:
                self.progress.start()
                self.scoring = self.progress.add_task("scoring", total=len(kwargs["eval_dataloader"]), note="")
            self.progress.advance(self.scoring)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.scoring is not None:
            self.progress.remove_task(self.scoring)
            self.scoring = None
        if self.training is None:
            self.progress.stop()
        name = f"eval_{args.metric_for_best_model}"
        if self.training is not None and metrics and name in metrics:
            self.progress.console.print(
                f"{self.title}: epoch {state.epoch:.4g} of {args.num_train_epochs:g}, "
                f"validation {args.metric_for_best_model} {metrics[name]:.4f}, {self.loss}",
                highlight=False,
            )

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self.training is not None:
            self.progress.remove_task(self.training)
            self.training = None
        self.progress.stop()


def bar(console: Console) -> Progress:
    """A progress bar with a field `note`; nothing is drawn where the console is no terminal."""
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
