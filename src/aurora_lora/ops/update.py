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

Where a backward pass is to be differentiated itself (`create_graph=True`), autograd finds it from the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .anl import ANL, adaptive_nonlinear
from .autocast import without_autocast
from .dispatch import ByHand, choose


def sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma(z) as in `adaptive_nonlinear`, computed fast: z (..., r) -> (..., r)."""
    if anl.is_identity:
        return z
    anl.check_weights(H, spline_weight)
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
        ValueError: H or spline_weight is None where sigma needs it.
    """
    anl.check_weights(H, spline_weight)
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


def can_fuse(x: Tensor, weight: Tensor, bias: Tensor | None, B: Tensor) -> bool:
    """Whether the base layer is frozen and all is computed in one dtype, without autocast: see `linear_with_update`."""
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not frozen or x.is_meta or not x.dtype == weight.dtype == B.dtype:  # autocast knows no meta tensors
        return False
    return not torch.is_autocast_enabled(x.device.type)


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

    Raises:
        ValueError: as `add_update`.
    """
    anl.check_weights(H, spline_weight)
    chosen = choose(A.shape[0], anl, x, weight, bias, A, B, H, spline_weight)
    if not isinstance(chosen, ByHand) or A.dtype != B.dtype or not can_fuse(x, weight, bias, B):
        return None
    out: Tensor = _Update.apply((weight, bias), x, A, B, H, spline_weight, scaling, anl, chosen)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], B.shape[0])


def _differentiable(
    function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of `function(*tensors)`, for its cotangent `grad`, that can be differentiated once more."""
    own = [None if t is None else t.view_as(t) for t in tensors]  # one tensor may have been made from another
    wanted = [t for t in own if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(function(*own), wanted, grad, create_graph=True) if wanted else ())
    return tuple(next(found) if t is not None and t.requires_grad else None for t in own)


class _Sigma(torch.autograd.Function):
    """sigma on (r, n)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL, chosen: ByHand) -> Tensor:
        u, (_, *kept) = chosen.forward(z, H, W, anl)
        ctx.anl, ctx.chosen = anl, chosen
        ctx.save_for_backward(z, H, W, *kept)  # z in place of u, which `_Update` alone asks for
        return u

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        z, H, W, *kept = ctx.saved_tensors
        with without_autocast(du):  # in the precision of its forward pass, wherever it is called
            if torch.is_grad_enabled():
                found = _differentiable(lambda z, H, W: adaptive_nonlinear(z.T, H, W, ctx.anl).T, du, z, H, W)
                return *found, None, None
            _, dz, dH, dW = ctx.chosen.backward(du, H, W, (z, *kept), ctx.anl)
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
        with without_autocast(grad):
            return (_Update._by_formula if torch.is_grad_enabled() else _Update._backward)(ctx, grad)

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

    @staticmethod
    def _by_formula(ctx: Any, grad: Tensor) -> Any:
        x, A, B, H, W, weight, *_ = ctx.saved_tensors

        def update(x: Tensor, A: Tensor, B: Tensor, H: Tensor | None, W: Tensor | None) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            out: Tensor = adaptive_nonlinear(rows @ A.T, H, W, ctx.anl) * ctx.scaling @ B.T
            return out if weight is None else out + rows @ weight.T

        found = _differentiable(update, grad.to(x.dtype), x, A, B, H, W)
        return grad if ctx.needs_input_grad[0] else None, *found, None, None, None


def _like(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if grad is None or weight is None else grad.to(weight.dtype)
