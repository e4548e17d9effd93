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
from .extras import extra
from .peft_import_hook import register_with_peft

if TYPE_CHECKING:
    from . import data as data
    from . import deploy as deploy
    from . import diffusion as diffusion
    from . import lab as lab
    from . import methods as methods
    from . import ops as ops
    from . import train as train
    from . import tuner as tuner
    from .deploy import (
        CalibrationReport,
        EndToEndGap,
        LayerCalibration,
        LayerGap,
        LayerLoss,
        LayerMerge,
        LayerProbe,
        MergeGap,
        MergeLoss,
        Probe,
        QuantizedMerge,
        align,
        calibrate,
        export_lora,
        lora_factors,
        merge_gap,
        merge_quantized,
        probe,
        ranked_config,
    )
    from .tuner import (
        AuroraConfig,
        AuroraConv1d,
        AuroraConv2d,
        AuroraConv3d,
        AuroraEmbedding,
        AuroraLayer,
        AuroraLinear,
        AuroraModel,
        set_form,
    )

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
    "lora_factors",
    "merge_gap",
    "merge_quantized",
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


register_with_peft()
