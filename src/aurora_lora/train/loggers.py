"""The loggers that a recipe may report to, each an optional package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ..errors import UserError, one_line
from ..extras import extra
from .sections import Logger


@contextmanager
def own_runs(names: Sequence[Logger]) -> Iterator[None]:
    """Within the block a training may begin a run of Weights & Biases, which ends with it: Transformers' callback goes
    on with one that is open. One that the caller has begun stays theirs."""
    wandb: Any = None
    if "wandb" in names:
        with extra("wandb"):
            wandb = importlib.import_module("wandb")
    is_theirs, failed = wandb is not None and wandb.run is not None, True
    try:
        yield
        failed = False
    except Exception as error:  # as where nobody has logged in
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        raise UserError(f"training.report_to: wandb: {one_line(error)}") from error
    finally:
        if wandb is not None and not is_theirs and wandb.run is not None:
            wandb.finish(exit_code=int(failed))


def logger_callbacks(names: Sequence[Logger], folder: Path) -> list[TrainerCallback]:
    """Transformers' callbacks that report to these.

    Args:
        names: of the loggers. Weights & Biases and Trackio are set up by their own environment variables.
        folder: where TensorBoard's files go.

    Raises:
        UserError: one is not installed.
    """
    callbacks: list[TrainerCallback] = []
    for name in names:
        with extra(name):
            importlib.import_module(name)
        kinds: Any = integration_utils.INTEGRATION_TO_CALLBACK
        callback = kinds[name]()
        if name == "tensorboard":
            callback.logging_dir = str(folder)
        callbacks.append(callback)
    return callbacks
