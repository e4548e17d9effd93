"""The update that an adapter makes, `result + s B sigma(A x)` (Eq. 4): what the layers call.

`dispatch.choose` says which implementation of sigma serves. One with derivatives of its own runs within one
autograd.Function with the whole backward derived by hand. Write x (n, d_in), G = dloss/dresult (n, d_out), and
everything in the rank space as (r, n). Forward:

    z = A x^T,   a = act(z),   b = act(H a),   u = [z +] b + L(z),   out = result + s u^T B^T     (one addmm)

and backward, with act' from act's own value:

    dB = s G^T u^T,   du = s B^T G^T,   dp = du act'(b),   dH = dp a^T,
    dz = [du +] (H^T dp) act'(a) + du L'(z),   dW_s = du . basis(z),   dA = dz x,   dx = dz^T A.

Where the base layer is a plain frozen linear layer, it is part of the same function: both of its products and the
update are then summed in place, in the output and in dx.

Kept for the backward pass are x, A and B, as in LoRA, and what the implementation of sigma asks for: the operator z
alone, (r, n); the aten calls u and four values more, at r = 2 about what LoRA keeps for A x at r = 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .anl import ANL
from .autocast import without_autocast
from .dispatch import ENVIRONMENT, ByHand, choose

_DOUBLE_BACKWARD = (
    "The fast path of AuroRA has no second derivatives (create_graph=True). "
    f"Set the environment variable {ENVIRONMENT}=1 for the eager path, which has."
)


def sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """As `adaptive_nonlinear`, fast: z (..., r) -> (..., r)."""
    if anl.is_identity:
        return z
    chosen = choose(z.shape[-1], anl, z, H, spline_weight)
    if not isinstance(chosen, ByHand):
        return chosen.sigma(z, H, spline_weight, anl)
    with torch.autocast(z.device.type, enabled=False):
        rows = z.reshape(-1, z.shape[-1]).T  # (r, n)
        u: Tensor = _Sigma.apply(rows, H, spline_weight, anl, chosen)  # type: ignore[no-untyped-call]
    return u.T.reshape(z.shape)


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
    """result + s B sigma(A x). With the identity for sigma, and sigma(A) or A_cal for A, it is a linear form (Eq. 9).

    Args:
        result: (..., d_out), the output of the base layer.
        x: (..., d_in), in A's dtype, or under autocast.
        A: (r, d_in).
        B: (d_out, r).
        H: as in `adaptive_nonlinear`.
        spline_weight: likewise.
        scaling: s = alpha / r.
        anl: which parts sigma has.

    Returns:
        (..., d_out) in the dtype of `result`.

    Raises:
        RuntimeError: in the backward pass, when second derivatives are asked for where they are written out by hand.
    """
    chosen = choose(A.shape[0], anl, result, x, A, B, H, spline_weight)
    if not isinstance(chosen, ByHand):
        z = sigma(functional.linear(x, A), H, spline_weight, anl)
        return result + functional.linear(z * scaling, B).to(result.dtype)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device)
        x, A, B = x.to(dtype), A.to(dtype), B.to(dtype)
    with torch.autocast(device, enabled=False):
        rows = result.reshape(-1, result.shape[-1])
        out: Tensor = _Update.apply(rows, x, A, B, H, spline_weight, scaling, anl, chosen)  # type: ignore[no-untyped-call]
    return out.view(result.shape)


def linear_with_update(
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
        weight: (d_out, d_in), not trained.
        bias: (d_out,), not trained.
        A: this and the following as in `add_update`.
        B: (d_out, r).
        H: (r, r).
        spline_weight: (r, K).
        scaling: s.
        anl: which parts sigma has.
    """
    chosen = choose(A.shape[0], anl, x, weight, bias, A, B, H, spline_weight)
    if not isinstance(chosen, ByHand) or torch.is_autocast_enabled(x.device.type):
        return None
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not frozen or not x.dtype == weight.dtype == A.dtype == B.dtype:
        return None
    out: Tensor = _Update.apply((weight, bias), x, A, B, H, spline_weight, scaling, anl, chosen)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], B.shape[0])


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(_DOUBLE_BACKWARD)


class _Sigma(torch.autograd.Function):
    """sigma on (r, n)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL, chosen: ByHand) -> Tensor:
        u, kept = chosen.forward(z, H, W, anl)
        ctx.anl, ctx.chosen = anl, chosen
        ctx.save_for_backward(H, W, *kept)
        return u

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        _refuse_double_backward()
        H, W, *kept = ctx.saved_tensors
        with without_autocast(du):  # in the precision of its forward pass, wherever it is called
            _, dz, dH, dW = ctx.chosen.backward(du, H, W, tuple(kept), ctx.anl)
        return dz, _like(dH, H), _like(dW, W), None, None


class _Update(torch.autograd.Function):
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
        chosen: ByHand,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        u, kept = chosen.forward(A @ rows.T, H, W, anl)
        weight = None
        if isinstance(result, tuple):
            weight, bias = result
            out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
            out.addmm_(u.T, B.T, alpha=scaling)
        elif result.dtype == x.dtype:
            out = torch.addmm(result, u.T, B.T, alpha=scaling)
        else:
            out = result + (u.T @ (B.T * scaling)).to(result.dtype)
        ctx.scaling, ctx.anl, ctx.chosen = scaling, anl, chosen
        ctx.save_for_backward(x, A, B, H, W, weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _refuse_double_backward()
        with without_autocast(grad):
            return _Update._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> Any:
        x, A, B, H, W, weight, *kept = ctx.saved_tensors
        for_result, for_x, for_A, for_B = ctx.needs_input_grad[:4]
        G = grad.to(x.dtype)
        du = torch.addmm(kept[0].T, G, B, beta=0, alpha=ctx.scaling).T
        u, dz, dH, dW = ctx.chosen.backward(du, H, W, tuple(kept), ctx.anl)
        dx = dA = dB = None
        if for_B:
            dB = torch.addmm(B, G.T, u.T, beta=0, alpha=ctx.scaling)
        if for_A:
            dA = dz @ x.reshape(-1, x.shape[-1])
        if for_x:
            dx = dz.T @ A if weight is None else (G @ weight).addmm_(dz.T, A)
            dx = dx.view(x.shape)
        return grad if for_result else None, dx, dA, dB, _like(dH, H), _like(dW, W), None, None, None


def _like(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if grad is None or weight is None else grad.to(weight.dtype)
