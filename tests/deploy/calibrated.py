"""What a calibration has found, to be compared."""

import torch

from aurora_lora.tuner import aurora_layers


def matrices(model):
    return {name: layer.aurora_A_cal["default"].weight.clone() for name, layer in aurora_layers(model)}


def assert_same(one, other, atol=1e-6):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=1e-5)
