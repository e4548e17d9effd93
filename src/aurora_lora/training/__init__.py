"""Training: from a recipe to an adapter, its result, and a model that can be used.

The names below are imported when they are first used: listing tasks or printing help needs no PyTorch.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CalibrationCallback": "callback",
    "Recipe": "recipe",
    "Run": "run",
    "TrainedRun": "finished_run",
    "evaluate": "evaluating",
    "evaluate_file": "evaluating",
    "load_predictor": "predicting",
    "load_recipe": "reading",
    "load_run": "finished_run",
    "merge": "merging",
    "predict": "predicting",
    "read_result": "results",
    "train": "run",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
