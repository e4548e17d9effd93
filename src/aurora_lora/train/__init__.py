"""Training: from a recipe to an adapter, its result, and a model that can be used.

    from aurora_lora.train import evaluate, merge, predict, train

    run = train("recipe.yaml", "runs/reviews")
    merge(run, "merged")
    predict("merged", ["A warm film."])

The names below are imported when they are first used: listing tasks or printing help needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

BATCH_SIZE = 16
"""Texts, or rows of a file, of one forward pass, unless another number is asked for."""

if TYPE_CHECKING:
    from .deploying import Exported, Merged, Pushed, export, merge, push
    from .finished_run import TrainedRun, load_run, read_result
    from .measuring import FileScores, evaluate, evaluate_file, gap, learned_activation
    from .predicting import Predictor, load_predictor, predict
    from .recipe import Recipe, load_recipe
    from .run import pretrain, train
    from .trainer import CalibrationCallback

__all__ = [
    "CalibrationCallback",
    "Exported",
    "FileScores",
    "Merged",
    "Predictor",
    "Pushed",
    "Recipe",
    "TrainedRun",
    "evaluate",
    "evaluate_file",
    "export",
    "gap",
    "learned_activation",
    "load_predictor",
    "load_recipe",
    "load_run",
    "merge",
    "predict",
    "pretrain",
    "push",
    "read_result",
    "train",
]

_NAMES_OF = {
    "trainer": "CalibrationCallback",
    "deploying": "Exported Merged Pushed export merge push",
    "predicting": "Predictor load_predictor predict",
    "recipe": "Recipe load_recipe",
    "finished_run": "TrainedRun load_run read_result",
    "measuring": "FileScores evaluate evaluate_file gap learned_activation",
    "run": "pretrain train",
}
"""The names of each module."""

if not TYPE_CHECKING:  # to a type checker, a name that is not above is a mistake

    def __getattr__(name):
        for module, names in _NAMES_OF.items():
            if name in names.split():
                return getattr(import_module(f".{module}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
