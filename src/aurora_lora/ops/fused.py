"""The same as `add_update` and `adaptive_nonlinear`, fast: one autograd.Function with its backward derived by hand.

Write x (n, d_in), G = dloss/dresult (n, d_out), and everything in the rank space as (r, n). Forward:

    z = A x^T,   a = act(z),   b = act(H a),   u = [z +] b + L(z),   out = result + s u^T B^T     (one addmm)

and backward, with act' from act's own value:

    dB = s G^T u^T,   du = s B^T G^T,   dp = du act'(b),   dH = dp a^T,
    dz = [du +] (H^T dp) act'(a) + du L'(z),   dW_s = du . basis(z),   dA = dz x,   dx = dz^T A.

Where the base layer is a plain frozen linear layer, it is part of the same function: both of its products and the
update are then summed in place, in the output and in dx.

L is a piecewise polynomial: the row of its interval is looked up, and two Horner schemes side by side give the basis
and its derivative. Kept for the backward pass are x, A and B, as in LoRA, and a, b, u, the interval and the place in
it, all (r, n): at r = 2 that is about what LoRA keeps for A x at r = 8. The basis, K times as much, is computed again.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import adapter
from .anl import ACTIVATIONS, ANL, LEAKY_RELU_SLOPE, adaptive_nonlinear
from .spline import piecewise_polynomials

EAGER = "AURORA_LORA_EAGER"
IDENTITY = ANL(None, None, skip=True)

_DOUBLE_BACKWARD = (
    "The fast path of AuroRA has no second derivatives (create_graph=True). "
    f"Set the environment variable {EAGER}=1 for the eager path, which has."
)


def is_fast(*tensors: Tensor | None) -> bool:
    """Whether the fast path serves these tensors.

    Not while torch.compile traces (Inductor fuses the eager path itself), not under torch.func's transforms, not for
    subclasses of Tensor (DTensor, fake tensors), and not where AURORA_LORA_EAGER=1 turns it off.
    """
    if torch.compiler.is_compiling() or os.environ.get(EAGER, "0") not in ("", "0"):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta) for t in tensors)


def add_update(
    result: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    H: Tensor | None,
    spline_weight: Tensor | None,
    scaling: float,
    anl: ANL,
) -> Tensor:
    """As `adapter.add_update`; the fast path where it serves.

    Raises:
        RuntimeError: in the backward pass, when second derivatives are asked for.
    """
    if not is_fast(result, x, A, B, H, spline_weight):
        return adapter.add_update(result, x, A, B, H, spline_weight, scaling, anl)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, A, B = x.to(dtype), A.to(dtype), B.to(dtype)
    with torch.autocast(device, enabled=False):
        rows = result.reshape(-1, result.shape[-1])
        out: Tensor = _AddUpdate.apply(rows, x, A, B, H, spline_weight, scaling, anl)  # type: ignore[no-untyped-call]
    return out.view(result.shape)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    H: Tensor | None,
    spline_weight: Tensor | None,
    scaling: float,
    anl: ANL,
) -> Tensor | None:
    """`W0 x + bias + s B sigma(A x)` for a frozen base, all in one; None where that cannot be done.

    Args:
        x: (..., d_in).
        weight, bias: (d_out, d_in) and (d_out,), not trained.
        A, B, H, spline_weight, scaling, anl: as in `add_update`.
    """
    if not is_fast(x, weight, bias, A, B, H, spline_weight) or torch.is_autocast_enabled(x.device.type):
        return None
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not frozen or not x.dtype == weight.dtype == A.dtype == B.dtype:
        return None
    out: Tensor = _AddUpdate.apply((weight, bias), x, A, B, H, spline_weight, scaling, anl)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], len(B))


def sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """As `adaptive_nonlinear`; the fast path where it serves. z (..., r) -> (..., r)."""
    if anl.is_identity or not is_fast(z, H, spline_weight):
        return adaptive_nonlinear(z, H, spline_weight, anl)
    with torch.autocast(z.device.type, enabled=False):
        rows: Tensor = _Sigma.apply(z.reshape(-1, z.shape[-1]).T.contiguous(), H, spline_weight, anl)  # type: ignore[no-untyped-call]
    return rows.T.reshape(z.shape)


def sigma_of_columns(A: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """As `nonlinear_columns`: sigma(A), (r, d_in)."""
    return sigma(A.T, H, spline_weight, anl).T


# -------------------------------------------------------------------- sigma and its derivatives, on (r, n)


@lru_cache(maxsize=64)
def _table(anl: ANL, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(boundaries, rows): for each interval, the coefficients of the K basis functions, and its middle."""
    with torch.inference_mode(False):
        boundaries, middles, coefficients = piecewise_polynomials(anl.grid_size, anl.order, anl.spline_range)
        rows = torch.cat([coefficients.flatten(1), middles[:, None]], 1)
        return boundaries.to(device, dtype), rows.to(device, dtype)


def _look_up(interval: Tensor, rows: Tensor, anl: ANL) -> tuple[list[Tensor], Tensor]:
    """The coefficients (r, n, K) of each power in the intervals (r, n), and their middles (r, n)."""
    found = rows.index_select(0, interval.reshape(-1)).view(*interval.shape, -1)
    K = anl.n_basis
    return [found[..., j * K : (j + 1) * K] for j in range(anl.order + 1)], found[..., -1]


def _basis(z: Tensor, anl: ANL) -> tuple[Tensor, Tensor, Tensor]:
    """B(z) (r, n, K), the intervals (r, n), and how far z is from their middles (r, n)."""
    boundaries, rows = _table(anl, z.dtype, z.device)
    interval = torch.bucketize(z, boundaries, right=True, out_int32=True)
    (*lower, value), middles = _look_up(interval, rows, anl)
    place = z - middles
    for c in reversed(lower):
        value = torch.addcmul(c, value, place.unsqueeze(-1))
    return value, interval, place


def _basis_and_derivative(interval: Tensor, place: Tensor, anl: ANL) -> tuple[Tensor, Tensor]:
    """B(z) and B'(z), (r, n, K) each, by Horner's scheme for both."""
    _, rows = _table(anl, place.dtype, place.device)
    (*lower, value), _ = _look_up(interval, rows, anl)
    derivative = None
    for c in reversed(lower):
        derivative = value if derivative is None else torch.addcmul(value, derivative, place.unsqueeze(-1))
        value = torch.addcmul(c, value, place.unsqueeze(-1))
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


def _forward(z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """u (r, n), and what the backward pass wants: a, b, the intervals and the place in them."""
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
        if anl.spline == "channelwise":  # for each channel (n, K) @ (K, 1)
            columns = W.unsqueeze(-1)
            u = torch.bmm(basis, columns).squeeze(-1) if u is None else _baddbmm(u, basis, columns)
        else:
            summed = basis.sum(0)  # (n, K)
            u = W @ summed.T if u is None else torch.addmm(u, W, summed.T)
    assert u is not None
    return u, (a, b, interval, place)


def _baddbmm(u: Tensor, basis: Tensor, columns: Tensor) -> Tensor:
    return torch.baddbmm(u.unsqueeze(-1), basis, columns).squeeze(-1)


def _backward(
    du: Tensor, H: Tensor | None, W: Tensor | None, kept: tuple[Tensor | None, ...], anl: ANL
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dz (r, n), dH (r, r), dW_s (r, K)."""
    a, b, interval, place = kept
    dz = du if anl.skip else None
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
        if anl.spline == "channelwise":
            dW = torch.bmm(du.unsqueeze(1), basis).squeeze(1)  # (1, n) @ (n, K)
            slope = torch.bmm(derivative, W.unsqueeze(-1)).squeeze(-1)
            dz = du * slope if dz is None else torch.addcmul(dz, du, slope)
        else:
            dW = du @ basis.sum(0)
            through = (derivative * (du.T @ W)).sum(-1)
            dz = through if dz is None else dz + through
    assert dz is not None
    return dz, dH, dW


def _wide(t: Tensor) -> Tensor:
    """In at least float32: r is tiny, and the spline of a rounded argument would be the larger error."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _wide_or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None else _wide(t)


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(_DOUBLE_BACKWARD)


class _Sigma(torch.autograd.Function):
    """sigma on (r, n)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> Tensor:
        u, kept = _forward(_wide(z), _wide_or_none(H), _wide_or_none(W), anl)
        ctx.anl = anl
        ctx.save_for_backward(H, W, *kept)
        return u.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        _refuse_double_backward()
        H, W, *kept = ctx.saved_tensors
        dz, dH, dW = _backward(_wide(du), _wide_or_none(H), _wide_or_none(W), tuple(kept), ctx.anl)
        return dz.to(du.dtype), _like(dH, H), _like(dW, W), None


class _AddUpdate(torch.autograd.Function):
    """result + s B sigma(A x), (n, d_out), where `result` may also be the (weight, bias) of the frozen base layer.

    It must not return a view: autograd forbids to change one in place that was made in a function like this, and some
    models (DeBERTa) change the output of a linear layer in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor | tuple[Tensor, Tensor | None],
        x: Tensor,
        A: Tensor,
        B: Tensor,
        H: Tensor | None,
        W: Tensor | None,
        scaling: float,
        anl: ANL,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        z = A @ rows.T  # (r, n)
        if anl.is_identity:
            u, kept = z, tuple[Tensor | None, ...]()
        else:
            u, kept = _forward(_wide(z), _wide_or_none(H), _wide_or_none(W), anl)
            u = u.to(z.dtype)
        weight = None
        if isinstance(result, tuple):
            weight, bias = result
            out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
            out.addmm_(u.T, B.T, alpha=scaling)
        elif result.dtype == x.dtype:
            out = torch.addmm(result, u.T, B.T, alpha=scaling)
        else:
            out = result + (u.T @ (B.T * scaling)).to(result.dtype)
        ctx.scaling, ctx.anl = scaling, anl
        ctx.save_for_backward(x, A, B, H, W, weight, u, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _refuse_double_backward()
        x, A, B, H, W, weight, u, *kept = ctx.saved_tensors
        for_result, for_x, for_A, for_B, for_H, for_W = ctx.needs_input_grad[:6]
        G = grad.to(x.dtype)
        dx = dA = dB = dH = dW = None
        if for_B:
            dB = torch.addmm(B, G.T, u.T, beta=0, alpha=ctx.scaling)
        if for_x or for_A or for_H or for_W:
            du = torch.addmm(u.T, G, B, beta=0, alpha=ctx.scaling).T
            dz = du
            if not ctx.anl.is_identity:
                dz, dH, dW = _backward(_wide(du), _wide_or_none(H), _wide_or_none(W), tuple(kept), ctx.anl)
                dz = dz.to(x.dtype)
            if for_A:
                dA = dz @ x.reshape(-1, x.shape[-1])
            if for_x:
                dx = dz.T @ A if weight is None else (G @ weight).addmm_(dz.T, A)
                dx = dx.view(x.shape)
        return grad if for_result else None, dx, dA, dB, _like(dH, H), _like(dW, W), None, None


def _like(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if grad is None or weight is None else grad.to(weight.dtype)


__all__ = ["EAGER", "IDENTITY", "add_update", "is_fast", "linear", "sigma", "sigma_of_columns"]
