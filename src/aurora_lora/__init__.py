"""AuroRA for PEFT: a nonlinear low-rank adapter that merges with a measured gap.

Importing this package registers the method with PEFT, in memory:

    import aurora_lora
    from peft import get_peft_model

    model = get_peft_model(base, aurora_lora.AuroraConfig(target_modules=["q_proj", "v_proj"]))
    ...                                     # train with any trainer
    aurora_lora.calibrate(model, batches)   # a few hundred training inputs, no labels
    merged = model.merge_and_unload()
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    AlreadyMergedError,
    ArgumentError,
    AuroraError,
    CalibrationError,
    CheckpointError,
    FormError,
    MergeError,
    NotCalibratedError,
    NotFiniteError,
    StaleCalibrationError,
    UserError,
)
from .extras import extra, without_import_noise

if TYPE_CHECKING:
    from . import data as data
    from . import deploy as deploy
    from . import diffusion as diffusion
    from . import lab as lab
    from . import methods as methods
    from . import ops as ops
    from . import train as train
    from . import tuner as tuner
    from .deploy import *  # noqa: F403
    from .tuner import *  # noqa: F403

# ruff: noqa: F405 of the names that these lists hold
__all__ = [
    "AlreadyMergedError",
    "ArgumentError",
    "AuroraConfig",
    "AuroraConv1d",
    "AuroraConv2d",
    "AuroraConv3d",
    "AuroraEmbedding",
    "AuroraError",
    "AuroraLayer",
    "AuroraLinear",
    "AuroraModel",
    "CalibrationError",
    "CalibrationReport",
    "CheckpointError",
    "EndToEndGap",
    "FormError",
    "InputStatistics",
    "LayerCalibration",
    "LayerGap",
    "LayerLoss",
    "LayerMerge",
    "LayerProbe",
    "MergeError",
    "MergeGap",
    "MergeLoss",
    "NotCalibratedError",
    "NotFiniteError",
    "Probe",
    "QuantizedMerge",
    "StaleCalibrationError",
    "UserError",
    "__version__",
    "align",
    "calibrate",
    "export_lora",
    "input_statistics",
    "lora_factors",
    "merge_gap",
    "merge_quantized",
    "merge_stored",
    "probe",
    "ranked_config",
    "set_form",
]

_ROOMS = ("tuner", "deploy", "ops")
"""Imported when something of them is asked for: they import torch and PEFT, which takes seconds."""

_OF_RECIPES = ("methods", "data", "train", "diffusion", "lab")
"""Imported likewise; they need what the extra `train` installs."""


if not TYPE_CHECKING:  # to a type checker, a name that is not above is a mistake

    def __getattr__(name):
        if name in _ROOMS:
            return importlib.import_module(f".{name}", __name__)
        if name in _OF_RECIPES:
            with extra("train"):
                return importlib.import_module(f".{name}", __name__)
        if name in __all__:
            rooms = (importlib.import_module(f".{room}", __name__) for room in _ROOMS)
            value = next(getattr(room, name) for room in rooms if name in room.__all__)
            globals()[name] = value
            return value
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, *_OF_RECIPES})


class _PeftFinder(MetaPathFinder):
    """Registers the method right after PEFT's import, so that importing this package need not import PEFT.

    Who only asks whether PEFT is there, as Transformers does, imports nothing by it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or (loader := spec.loader) is None:
            return spec
        load = loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            with without_import_noise():
                load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module("aurora_lora.tuner")

        loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module("aurora_lora.tuner")
elif not any(type(finder).__name__ == _PeftFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _PeftFinder())
