"""sigma and its derivatives on (r, n), in few aten calls: for the CPU, and for GPUs without Triton.

L is a piecewise polynomial: the coefficients of its interval are looked up, and two Horner schemes side by side give
the basis and its derivative. Kept for the backward pass are a = act(z), b = act(H a), the interval and the place in it,
all (r, n). The basis, K times as much, is computed again. It is (K, r, n): each step is then one pass over memory in
order.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .anl import ACTIVATIONS, ANL, LEAKY_RELU_SLOPE, Derivatives, Kept
from .spline import piecewise_polynomials


@lru_cache(maxsize=64)
def _table(anl: ANL, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(boundaries, columns): for each interval, the coefficients of the K basis functions, and its middle."""
    with torch.inference_mode(False):
        boundaries, middles, coefficients = piecewise_polynomials(
            anl.spline_grid_size, anl.spline_order, anl.spline_range
        )
        columns = torch.cat([coefficients.flatten(1), middles[:, None]], 1).T.contiguous()
        return boundaries.to(device, dtype), columns.to(device, dtype)


def _look_up(interval: Tensor, columns: Tensor, anl: ANL) -> tuple[list[Tensor], Tensor]:
    """The coefficients (K, r, n) of each power in the intervals (r, n), and their middles (r, n)."""
    found = columns.index_select(1, interval.reshape(-1)).view(len(columns), *interval.shape)
    K = anl.n_basis
    return [found[j * K : (j + 1) * K] for j in range(anl.spline_order + 1)], found[-1]


def _basis(z: Tensor, anl: ANL) -> tuple[Tensor, Tensor, Tensor]:
    """B(z) (K, r, n), the intervals (r, n), and how far z is from their middles (r, n)."""
    boundaries, columns = _table(anl, z.dtype, z.device)
    interval = torch.bucketize(z, boundaries, right=True, out_int32=True)
    (*lower, value), middles = _look_up(interval, columns, anl)
    place = (z - middles).nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)  # outside, where 0 * inf would be NaN
    for c in reversed(lower):
        value = torch.addcmul(c, value, place)
    return value, interval, place


def _basis_and_derivative(interval: Tensor, place: Tensor, anl: ANL) -> tuple[Tensor, Tensor]:
    """B(z) and B'(z), (K, r, n) each, by Horner's scheme for both."""
    _, columns = _table(anl, place.dtype, place.device)
    (*lower, value), _ = _look_up(interval, columns, anl)
    derivative = None
    for c in reversed(lower):
        derivative = value if derivative is None else torch.addcmul(value, derivative, place)
        value = torch.addcmul(c, value, place)
    return value, torch.zeros_like(value) if derivative is None else derivative


def _activation_backward(name: str, grad: Tensor, output: Tensor) -> Tensor:
    """grad * act'(.), from act's value."""
    aten = torch.ops.aten
    if name == "tanh":
        found = aten.tanh_backward(grad, output)
    elif name == "sigmoid":
        found = aten.sigmoid_backward(grad, output)
    elif name == "relu":
        found = aten.threshold_backward(grad, output, 0)
    else:
        found = aten.leaky_relu_backward(grad, output, LEAKY_RELU_SLOPE, True)
    return found  # type: ignore[no-any-return]


def aten_forward(z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> tuple[Tensor, Kept]:
    """u = sigma(z) (r, n) in z's dtype; and what `aten_backward` wants: u, a, b, the intervals, the place in them."""
    if anl.is_identity:
        return z, (z,)
    dtype = z.dtype
    z = at_least_float32(z).contiguous()
    H, W = _like(H, z), _like(W, z)
    a = b = interval = place = None
    u = z if anl.skip else None
    if anl.fixed_activation is not None:
        assert H is not None
        act = ACTIVATIONS[anl.fixed_activation]
        a = act(z)
        b = act(H @ a)
        u = b if u is None else u + b
    if anl.spline is not None:
        assert W is not None
        basis, interval, place = _basis(z, anl)
        if anl.spline == "channelwise":  # for each channel (1, K) @ (K, n)
            u = _plus_products(None if u is None else u.unsqueeze(1), W.unsqueeze(1), basis.transpose(0, 1))
        else:
            summed = basis.sum(1)  # (K, n)
            u = W @ summed if u is None else torch.addmm(u, W, summed)
    assert u is not None
    u = u.to(dtype)
    return u, (u, a, b, interval, place)


def _plus_products(sum_so_far: Tensor | None, rows: Tensor, matrices: Tensor) -> Tensor:
    """The sum so far, (r, 1, n) or (1, 1, 1), plus rows (r, 1, K) times matrices (r, K, n), in one call: (r, n)."""
    if sum_so_far is None:
        return torch.bmm(rows, matrices).squeeze(1)
    return torch.baddbmm(sum_so_far, rows, matrices).squeeze(1)


@lru_cache(maxsize=64)
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The derivative of the skip, (1, 1, 1)."""
    with torch.inference_mode(False):
        return torch.ones(1, 1, 1, dtype=dtype, device=device)


def aten_backward(du: Tensor, H: Tensor | None, W: Tensor | None, kept: Kept, anl: ANL) -> Derivatives:
    """u and dz (r, n) in du's dtype; dH (r, r) and dW_s (r, K) in at least float32."""
    u, *values = kept
    assert u is not None
    if anl.is_identity:
        return u, du, None, None
    dtype = du.dtype
    du = at_least_float32(du)
    H, W = _like(H, du), _like(W, du)
    a, b, interval, place = values
    channelwise = anl.spline == "channelwise"
    dz = du if anl.skip and not channelwise else None
    dH = dW = None
    if anl.fixed_activation is not None:
        assert H is not None
        assert a is not None
        assert b is not None
        dp = _activation_backward(anl.fixed_activation, du, b)
        dH = dp @ a.T
        through = _activation_backward(anl.fixed_activation, H.T @ dp, a)
        dz = through if dz is None else dz + through
    if anl.spline is not None:
        assert W is not None
        assert interval is not None
        assert place is not None
        basis, derivative = _basis_and_derivative(interval, place, anl)
        if channelwise:
            dW = torch.bmm(basis.transpose(0, 1), du.unsqueeze(-1)).squeeze(-1)  # (K, n) @ (n, 1)
            of_skip = _one(du.dtype, du.device) if anl.skip else None
            slope = _plus_products(of_skip, W.unsqueeze(1), derivative.transpose(0, 1))  # L'(z), or 1 + L'(z)
            dz = du * slope if dz is None else torch.addcmul(dz, du, slope)
        else:
            dW = du @ basis.sum(1).T
            through = (derivative * (W.T @ du).unsqueeze(1)).sum(0)
            dz = through if dz is None else dz + through
    assert dz is not None
    return u, dz.to(dtype), dH, dW


def at_least_float32(t: Tensor) -> Tensor:
    """r is tiny, and the spline of a rounded argument would be the larger error."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _like(weight: Tensor | None, z: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(z.dtype)
