"""Moments in exact float32 products: the calibrated matrix beside one that NumPy computes in float64 throughout."""

import sys

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, calibrate
from aurora_lora.deploy.calibrate import add_gram, mirror

moments = sys.modules["aurora_lora.deploy.calibrate"]  # the package's own name for it is the function

D, N = 160, 1500
RIDGE = 1e-4


@pytest.fixture
def slow(monkeypatch):
    """A device whose float64 is slow; and the least ridge, with which rounding does most."""
    monkeypatch.setattr(moments, "has_slow_float64", lambda device: True)
    monkeypatch.setattr(moments, "RIDGES", ())


def one_layer(x):
    """A model of one layer with A such that z has a standard deviation of about 1/2."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(x.shape[1], 3)), AuroraConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    with torch.no_grad():
        A = torch.randn_like(layer.aurora_A["default"].weight)
        layer.aurora_A["default"].weight.copy_(A / (2 * x.double().square().sum(1).mean().sqrt().float()))
    return model, layer


def in_float64(layer, x, ridge, moment=None):
    """D A + (C - D A S) (S + lambda I)^-1 from the layer's own sigma(Ax), by NumPy; `moment` stands in for x^T x."""
    with torch.no_grad():
        A = layer.aurora_A["default"].weight.double().numpy()
        sigma = layer.sigma("default", x @ layer.aurora_A["default"].weight.T).double().numpy()
    wide = x.double().numpy()
    S = (wide.T @ wide if moment is None else moment) / len(wide)
    C = sigma.T @ wide / len(wide)
    linear = np.linalg.solve(A @ S @ A.T, A @ C.T).T @ A
    return linear + np.linalg.solve(S + ridge * np.eye(len(S)), (C - linear @ S).T).T


def distance(matrix, exact):
    return np.linalg.norm(matrix - exact) / np.linalg.norm(exact)


def check(x):
    """The distance of what `calibrate` finds, and that of plain float32 products of 1,024 rows."""
    model, layer = one_layer(x)
    (report,) = calibrate(model, x.split(400), ridge=RIDGE).layers
    exact = in_float64(layer, x, report.ridge)
    plain = sum((piece.T @ piece).double().numpy() for piece in x.split(1024))
    found = distance(layer.aurora_A_cal["default"].weight.double().numpy(), exact)
    return found, distance(in_float64(layer, x, report.ridge, plain), exact)


def hostile():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=g)
    falling = x * torch.logspace(0, -4, D) @ torch.linalg.qr(torch.randn(D, D, generator=g)).Q
    outliers = x.clone()
    outliers[:, 7] *= 300
    outliers[:, 20] += 50
    return {
        "outlier channels": outliers,
        "falling spectrum": falling,
        "fewer inputs than dimensions": x[:80],
        "channels over six decades": x * torch.logspace(3, -3, D),
        "a channel of zeros": x * (torch.arange(D) != 3),
        "huge": x * 1e15,
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_matrix_is_that_of_float64(slow, name):
    found, _ = check(HOSTILE[name])
    assert found < 1e-5


@pytest.mark.parametrize("name", ["falling spectrum", "fewer inputs than dimensions"])
def test_plain_float32_products_would_not_do(slow, name):
    _, plain = check(HOSTILE[name])
    assert plain > 1e-5


@pytest.mark.parametrize("d", [1, 191, 193, 500])
@pytest.mark.parametrize("sliced", [False, True])
def test_the_lower_triangle_is_enough(d, sliced):
    x = torch.randint(-9, 9, (1300, d), generator=torch.Generator().manual_seed(2)).float()
    total = torch.ones(d, d, dtype=torch.float64)
    add_gram(total, x if sliced else x.double(), sliced)
    mirror(total)
    assert torch.equal(total, x.double().T @ x.double() + 1)
