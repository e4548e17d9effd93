"""AuroRA for PEFT: a nonlinear low-rank adapter that merges with a measured gap.

Importing this package registers the method with PEFT, in memory:

    import aurora_lora
    from peft import get_peft_model

    model = get_peft_model(base, aurora_lora.AuroraConfig(target_modules=["q_proj", "v_proj"]))
    ...                                     # train with any trainer
    aurora_lora.calibrate(model, batches)   # a few hundred training inputs, no labels
    merged = model.merge_and_unload()
"""

from ._version import __version__
from .deploy import (
    CalibrationReport,
    EndToEndGap,
    LayerCalibration,
    LayerGap,
    LayerMerge,
    MergeGap,
    QuantizedMerge,
    calibrate,
    export_lora,
    lora_factors,
    merge_gap,
    merge_quantized,
)
from .errors import (
    AuroraError,
    CalibrationError,
    CheckpointError,
    FormError,
    MergeError,
    NotCalibratedError,
    NotFiniteError,
    StaleCalibrationError,
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
    "LayerMerge",
    "MergeError",
    "MergeGap",
    "NotCalibratedError",
    "NotFiniteError",
    "QuantizedMerge",
    "StaleCalibrationError",
    "__version__",
    "calibrate",
    "export_lora",
    "lora_factors",
    "merge_gap",
    "merge_quantized",
    "set_form",
]
