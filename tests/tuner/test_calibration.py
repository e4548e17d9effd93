"""`Calibration`: fresh, stale or none, and what is kept where one is taken away and given back."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.errors import NotCalibratedError, StaleCalibrationError
from aurora_lora.tuner import Calibration


def one_layer(**fields):
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["0"], init_weights=False, **fields)
    layer = get_peft_model(nn.Sequential(nn.Linear(5, 4)), config).base_model.model[0]
    return layer, layer.calibration["default"]


def test_from_none_to_fresh_to_stale():
    layer, calibration = one_layer()
    assert isinstance(calibration, Calibration)
    with pytest.raises(NotCalibratedError):
        calibration.fresh_matrix()
    assert (calibration.exists, calibration.check(), calibration.config.calibrated) == (False, False, False)
    matrix = torch.randn(2, 5)
    calibration.store(matrix)
    assert (calibration.exists, calibration.is_fresh, calibration.config.calibrated) == (True, True, True)
    assert torch.equal(calibration.fresh_matrix(), matrix)
    assert layer.eval().form("default") == "calibrated"
    for weights in (layer.aurora_A, layer.aurora_H, layer.aurora_spline_weight):
        with torch.no_grad():
            weights["default"].weight.add_(1)
        assert (calibration.exists, calibration.check()) == (True, False)
        with pytest.raises(StaleCalibrationError):
            calibration.fresh_matrix()
        calibration.store(matrix)
    with torch.no_grad():
        layer.aurora_B["default"].weight.add_(1)  # which the matrix does not depend on
    assert calibration.check()
