"""From a trained adapter to a served one."""

from .align import align
from .calibrate import CalibrationReport, LayerCalibration, calibrate
from .export import export_lora, lora_factors
from .gap import LayerGap, MergeGap, merge_gap
from .merge_quantized import LayerMerge, QuantizedMerge, merge_quantized
from .merges import LayerLoss, MergeLoss
from .predictions import EndToEndGap
from .probe import LayerProbe, Probe, probe
from .ranks import ranked_config
from .statistics import InputStatistics, input_statistics
from .stored import merge_stored

__all__ = [
    "CalibrationReport",
    "EndToEndGap",
    "InputStatistics",
    "LayerCalibration",
    "LayerGap",
    "LayerLoss",
    "LayerMerge",
    "LayerProbe",
    "MergeGap",
    "MergeLoss",
    "Probe",
    "QuantizedMerge",
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
]
