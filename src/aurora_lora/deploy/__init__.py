"""From a trained adapter to a served one."""

from .calibrate import CalibrationReport, LayerCalibration, calibrate

__all__ = ["CalibrationReport", "LayerCalibration", "calibrate"]
