"""Training: from a recipe to an adapter, its result, and a model that can be used.

    from aurora_lora.train import evaluate, merge, predict, train

    run = train("recipe.yaml", "runs/reviews")
    merge(run, "merged")
    predict("merged", ["A warm film."])

The names below are imported when they are first used: listing tasks or printing help needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .callback import CalibrationCallback
    from .evaluating import FileScores, evaluate, evaluate_file
    from .exporting import Exported, export
    from .finished_run import TrainedRun, load_run
    from .measuring import gap, learned_activation
    from .merging import Merged, merge
    from .predicting import Predictor, load_predictor, predict
    from .pretraining import pretrain
    from .pushing import Pushed, push
    from .recipe import Recipe, load_recipe
    from .results import read_result
    from .run import train

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

_MODULE_OF = {
    "CalibrationCallback": "callback",
    "Exported": "exporting",
    "FileScores": "evaluating",
    "Merged": "merging",
    "Predictor": "predicting",
    "Pushed": "pushing",
    "Recipe": "recipe",
    "TrainedRun": "finished_run",
    "evaluate": "evaluating",
    "evaluate_file": "evaluating",
    "export": "exporting",
    "gap": "measuring",
    "learned_activation": "measuring",
    "load_predictor": "predicting",
    "load_recipe": "recipe",
    "load_run": "finished_run",
    "merge": "merging",
    "predict": "predicting",
    "pretrain": "pretraining",
    "push": "pushing",
    "read_result": "results",
    "train": "run",
}

if not TYPE_CHECKING:  # to a type checker, a name that is not above is a mistake

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
