"""From a trained adapter to a served one."""

from .calibrate import CalibrationReport, LayerCalibration, calibrate
from .export import export_lora, lora_factors
from .gap import EndToEndGap, LayerGap, MergeGap, merge_gap
from .merge_quantized import LayerMerge, QuantizedMerge, merge_quantized

__all__ = [
    "CalibrationReport",
    "EndToEndGap",
    "LayerCalibration",
    "LayerGap",
    "LayerMerge",
    "MergeGap",
    "QuantizedMerge",
    "calibrate",
    "export_lora",
    "lora_factors",
    "merge_gap",
    "merge_quantized",
]
