"""Proposition 2.2: the bounds hold for every layer and input, and are not much larger than they need be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.ops import ANL, adaptive_nonlinear, bspline_basis
from theory.gradients import (
    GRADIENTS,
    Layer,
    attacked_ratios,
    basis_bound,
    gradient_bounds,
    gradient_norms,
    random_ratios,
    sigma_bound,
    slope_bound,
)

ROUNDING = 1 + 1e-9


@st.composite
def anls(draw: Callable[..., Any]) -> ANL:
    """Any sigma that an adapter can have, of any grid and order."""
    activation = draw(st.sampled_from(["tanh", "leaky_relu", "sigmoid", "relu", None]))
    spline = draw(st.sampled_from(["channelwise", "summed", None]))
    skip = True if activation is None and spline is None else draw(st.booleans())
    low = draw(st.floats(-3, 1))
    size, order, width = draw(st.integers(1, 8)), draw(st.integers(0, 5)), draw(st.floats(0.2, 6))
    return ANL(activation, spline, size, order, (low, low + width), skip=skip)


@st.composite
def cases(draw: Callable[..., Any]) -> tuple[ANL, Layer, torch.Tensor, torch.Tensor, float]:
    """A sigma, a layer with weights of any size, an input, a target and a scaling."""
    anl = draw(anls())
    r, d_in, d_out = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shapes = ((d_out, d_in), (r, d_in), (d_out, r), (r, r), (r, anl.n_basis), (d_in,), (d_out,))
    tensors = []
    for shape in shapes:
        size = 10 ** draw(st.floats(-3, 2))
        tensors.append(size * torch.randn(*shape, dtype=torch.float64, generator=generator))
    return anl, Layer(*tensors[:5]), tensors[5], tensors[6], draw(st.floats(0.1, 8))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_no_gradient_passes_its_bound(case: Any) -> None:
    anl, layer, x, y, scaling = case
    norms = gradient_norms(layer, x, y, anl, scaling)
    bounds = gradient_bounds(layer, float(x.norm()), float(y.norm()), anl, scaling)
    assert (norms <= bounds * ROUNDING + 1e-12).all(), dict(zip(GRADIENTS, (norms / bounds).tolist(), strict=True))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_sigma_and_its_slope_stay_below_their_bounds(case: Any) -> None:
    anl, layer, x, _, _ = case
    z = layer.A @ x
    value = adaptive_nonlinear(z, layer.H, layer.spline_weight, anl)
    assert value.norm() <= sigma_bound(layer, float(x.norm()), anl)[0] * ROUNDING + 1e-12
    jacobian = torch.func.jacrev(lambda z: adaptive_nonlinear(z, layer.H, layer.spline_weight, anl))(z)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= slope_bound(layer, anl) * ROUNDING + 1e-12


@pytest.mark.parametrize("anl", [ANL(skip=False), ANL(spline="summed", skip=False), ANL("sigmoid", skip=True)])
def test_gradients_equal_finite_differences(anl: ANL) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (2, 4), (3, 2), (2, 2), (2, 8), (4,), (3,))
    *weights, x, y = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)

    def loss(A: torch.Tensor) -> float:
        z = adaptive_nonlinear(A @ x, weights[3], weights[4], anl)
        return 0.5 * float((weights[0] @ x + 1.5 * weights[2] @ z - y).square().sum())

    slopes = []
    for i in range(8):
        step = torch.zeros(8, dtype=torch.float64)
        step[i] = 1e-6
        slopes.append((loss(weights[1] + step.view(2, 4)) - loss(weights[1] - step.view(2, 4))) / 2e-6)
    found = gradient_norms(Layer(*weights), x, y, anl, 1.5)
    assert float(found[0]) == pytest.approx(float(torch.tensor(slopes).norm()), rel=1e-5)


@pytest.mark.parametrize("order", range(6))
def test_basis_bound(order: int) -> None:
    z = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    largest = float(bspline_basis(z, 4, order, (-1.0, 1.0)).norm(dim=-1).max())
    assert largest <= basis_bound(ANL(spline_order=order, skip=False)) * ROUNDING
    assert largest >= 0.8 * basis_bound(ANL(spline_order=order, skip=False))


def test_an_attack_comes_near_the_bounds_and_not_past_them() -> None:
    attacked = attacked_ratios(ANL(skip=False), starts=8, steps=150, seed=0)
    for name in GRADIENTS:
        assert 0.8 < attacked[name] <= ROUNDING, name
    drawn = random_ratios(ANL(skip=False), 1000, 0)
    assert all(0 < drawn[name] <= ROUNDING for name in GRADIENTS)


def test_lora_has_no_gradient_of_what_it_lacks() -> None:
    ratios = random_ratios(ANL(None, None, skip=True), 200, 0)
    assert ratios["H"] == ratios["spline_weight"] == 0
    assert 0 < ratios["A"] <= ROUNDING
