"""The uniform B-spline basis in closed form.

The K = grid_size + order basis functions of degree p = `order` on [lo, hi] are shifted copies of the cardinal B-spline,

    B_i(z) = beta_p((z - c_i) / h),   h = (hi - lo) / grid_size,   c_i = lo + (i - (p - 1) / 2) h,
    beta_p(u) = 1/p! sum_{j <= p/2} (-1)^j C(p + 1, j) ((p + 1)/2 - j - |u|)_+^p,

which equals the Cox-de Boor recursion on knots extended `order` steps past both ends. The support of the whole basis is
(lo - p h, hi + p h); outside it every function is exactly 0. For the cubic case this is
beta_3(u) = ((2 - |u|)_+^3 - 4 (1 - |u|)_+^3) / 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bspline_basis(
    z: Tensor, grid_size: int = 5, order: int = 3, spline_range: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """B(z): the values of the uniform B-spline basis functions (Eq. 7).

    Args:
        z: (...), any floating point dtype of at least float32 precision.
        grid_size: number of grid intervals on `spline_range`.
        order: polynomial degree, 3 for cubic.
        spline_range: (lo, hi), the interval that the grid divides.

    Returns:
        (..., K) with K = grid_size + order.
    """
    lo, hi = spline_range
    # Made on the fly, in z's own precision: a stored grid would be rounded when a model is cast to bfloat16.
    index = torch.arange(grid_size + order, device=z.device, dtype=z.dtype)
    # the distance from each centre in steps of the grid, (..., K)
    u = (z.unsqueeze(-1) - lo) / ((hi - lo) / grid_size) - (index - (order - 1) / 2)
    if order == 0:  # the half-open indicator; the symmetric form below would count both ends
        return ((u >= -0.5) & (u < 0.5)).to(z.dtype)
    return _truncated_powers(u.abs(), order)


def identity_weights(grid_size: int = 5, order: int = 3, spline_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """The weights w (K,) with `sum_k w_k B_k(z) = z` on `spline_range`: the centres c_k of the basis functions.

    Splines of order 0 are constant on each interval: there the sum is the interval's middle.
    """
    lo, hi = spline_range
    return lo + (hi - lo) / grid_size * (torch.arange(grid_size + order) - (order - 1) / 2)


def _truncated_powers(distance: Tensor, order: int) -> Tensor:
    """1/p! sum_j (-1)^j C(p + 1, j) ((p + 1)/2 - j - distance)_+^p, p being the order."""
    total = torch.zeros_like(distance)
    for j in range((order + 2) // 2):
        left = ((order + 1) / 2 - j - distance).clamp_min(0)
        total = total + (-1) ** j * math.comb(order + 1, j) * left**order
    return total / math.factorial(order)


def piecewise_polynomials(
    grid_size: int, order: int, spline_range: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """The basis as polynomials, interval by interval.

    There are I = grid_size + 2 order intervals of the step h, from lo - order h on; rows 0 and I + 1 are the two
    outsides, where everything is 0.

    Returns:
        boundaries (I + 1,) of the intervals; their middles m (I + 2,); and coefficients c (I + 2, order + 1, K), so
        that B_k(z) = sum_j c[i, j, k] (z - m_i)^j for z in interval i. In float64 on the CPU:
        the default device may have no float64 (Apple's MPS).
    """
    lo, hi = spline_range
    step = (hi - lo) / grid_size
    n, K = grid_size + 2 * order, grid_size + order
    boundaries = lo + step * (torch.arange(n + 1, dtype=torch.float64, device="cpu") - order)
    middles = torch.zeros(n + 2, dtype=torch.float64, device="cpu")
    middles[1:-1] = (boundaries[1:] + boundaries[:-1]) / 2
    coefficients = torch.zeros(n + 2, order + 1, K, dtype=torch.float64, device="cpu")
    # N_p on its unit interval i, in the distance s from the middle: sum_k (-1)^k C(p + 1, k) (s + i - k + 1/2)^p / p!
    for i in range(order + 1):
        for j in range(order + 1):
            terms = ((-1) ** k * math.comb(order + 1, k) * (2 * (i - k) + 1) ** (order - j) for k in range(i + 1))
            value = sum(terms) / (2 ** (order - j) * math.factorial(j) * math.factorial(order - j))
            for k in range(K):
                coefficients[1 + k + i, j, k] = value / step**j
    return boundaries, middles, coefficients
