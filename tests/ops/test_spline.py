"""The closed-form basis against SciPy's Cox-de Boor recursion."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from aurora_lora.ops import bspline_basis, identity_weights

GRIDS = [(5, (-1.0, 1.0)), (1, (-1.0, 1.0)), (10, (-4.0, 4.0)), (7, (0.25, 3.0))]


def scipy_splines(grid_size: int, order: int, spline_range: tuple[float, float]) -> list[BSpline]:
    low, high = spline_range
    step = (high - low) / grid_size
    knots = low + step * np.arange(-order, grid_size + order + 1)
    return [BSpline.basis_element(knots[i : i + order + 2], extrapolate=False) for i in range(grid_size + order)]


def points(spline_range: tuple[float, float], beyond: float = 6.0) -> np.ndarray:
    low, high = spline_range
    width = high - low
    return np.random.default_rng(0).uniform(low - beyond * width, high + beyond * width, size=2000)


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(("grid_size", "spline_range"), GRIDS)
def test_basis_equals_scipy(grid_size, order, spline_range):
    z = points(spline_range)
    expected = np.stack([np.nan_to_num(b(z)) for b in scipy_splines(grid_size, order, spline_range)], axis=-1)
    basis = bspline_basis(torch.from_numpy(z), grid_size, order, spline_range)
    assert basis.shape == (2000, grid_size + order)
    np.testing.assert_allclose(basis.numpy(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize(("grid_size", "spline_range"), GRIDS)
def test_derivative_equals_scipy(grid_size, order, spline_range):
    z = torch.from_numpy(points(spline_range)).requires_grad_()
    first = scipy_splines(grid_size, order, spline_range)[0].derivative()
    (grad,) = torch.autograd.grad(bspline_basis(z, grid_size, order, spline_range)[:, 0].sum(), z)
    np.testing.assert_allclose(grad.numpy(), np.nan_to_num(first(z.detach().numpy())), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(("grid_size", "spline_range"), GRIDS)
def test_the_spline_that_is_the_identity(grid_size, order, spline_range):
    low, high = spline_range
    z = torch.from_numpy(np.random.default_rng(0).uniform(low, high, size=200))
    step = (high - low) / grid_size
    expected = z if order else low + step * (((z - low) / step).floor() + 0.5)
    weights = identity_weights(grid_size, order, spline_range).double()
    torch.testing.assert_close(bspline_basis(z, grid_size, order, spline_range) @ weights, expected, rtol=0, atol=2e-6)
