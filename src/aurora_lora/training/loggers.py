"""The loggers that a recipe may report to, each an optional package."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ..extras import extra
from .sections import Logger


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
