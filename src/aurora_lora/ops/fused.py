"""The same as `add_update` and `adaptive_nonlinear`, fast: one autograd.Function with its backward derived by hand.

Write x (n, d_in), G = dloss/dresult (n, d_out), and everything in the rank space as (r, n). Forward:

    z = A x^T,   a = act(z),   b = act(H a),   u = [z +] b + L(z),   out = result + s u^T B^T     (one addmm)

and backward, with act' from act's own value:

    dB = s G^T u^T,   du = s B^T G^T,   dp = du act'(b),   dH = dp a^T,
    dz = [du +] (H^T dp) act'(a) + du L'(z),   dW_s = du . basis(z),   dA = dz x,   dx = dz^T A.

Where the base layer is a plain frozen linear layer, it is part of the same function: both of its products and the
update are then summed in place, in the output and in dx.

sigma itself is one operator each way on CUDA (`anl_op`), and a few aten calls elsewhere (`rank_space`). Kept for the
backward pass are x, A and B, as in LoRA, and with the operator z alone, (r, n). Elsewhere it is u and what `rank_space`
asks for: at r = 2 about what LoRA keeps for A x at r = 8.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import adapter, anl_op, rank_space
from .anl import ANL, adaptive_nonlinear

EAGER = "AURORA_LORA_EAGER"
IDENTITY = ANL(None, None, skip=True)

_DOUBLE_BACKWARD = (
    "The fast path of AuroRA has no second derivatives (create_graph=True). "
    f"Set the environment variable {EAGER}=1 for the eager path, which has."
)


def is_fast(*tensors: Tensor | None) -> bool:
    """Whether the fast path serves these tensors.

    Not while torch.compile traces, which does without hand-derived derivatives (see `sigma`), not under torch.func's
    transforms, not for subclasses of Tensor (DTensor, fake tensors), and not where AURORA_LORA_EAGER=1 turns it off.
    """
    if torch.compiler.is_compiling() or _is_off() or torch._C._are_functorch_transforms_active():
        return False
    return _are_plain(*tensors)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_off() -> bool:
    return os.environ.get(EAGER, "0") not in ("", "0")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_exporting() -> bool:
    """Asked while it traces: traced itself, `is_exporting` is always true up to torch 2.10. 2.6 cannot tell."""
    asked: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)
    return asked is None or asked()


def _are_plain(*tensors: Tensor | None) -> bool:
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta) for t in tensors)


def _is_compiled_to_the_operator(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> bool:
    """Whether torch.compile should see `anl_op`. An exported program should run without this package: not there."""
    if not torch.compiler.is_compiling() or _is_exporting() or _is_off():
        return False
    return _are_plain(z, H, spline_weight) and anl_op.serves(z, z.shape[-1], anl)


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
        return adapter.add_update(result, x, A, B, H, spline_weight, scaling, anl, sigma)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # which autocast leaves alone
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
    """As `adaptive_nonlinear`; the fast path where it serves. z (..., r) -> (..., r).

    While torch.compile traces for CUDA this is the operator. Inductor makes several loops of the eager formula and its
    derivatives (dH and dW_s are sums over the tokens); on a CPU they are one function, but on a GPU each is a launch.
    """
    if anl.is_identity:
        return z
    rows = z.reshape(-1, z.shape[-1]).T  # (r, n)
    if is_fast(z, H, spline_weight):
        with torch.autocast(z.device.type, enabled=False):
            u: Tensor = _Sigma.apply(rows, H, spline_weight, anl)  # type: ignore[no-untyped-call]
    elif _is_compiled_to_the_operator(z, H, spline_weight, anl):
        u = anl_op.forward(rows, H, spline_weight, anl)
    else:
        return adaptive_nonlinear(z, H, spline_weight, anl)
    return u.T.reshape(z.shape)


def sigma_of_columns(A: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """As `nonlinear_columns`: sigma(A), (r, d_in)."""
    return sigma(A.T, H, spline_weight, anl).T


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(_DOUBLE_BACKWARD)


def _forward(z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """u = sigma(z), (r, n), and what is kept of it."""
    if anl.is_identity:
        return z, (z,)
    if anl_op.serves(z, len(z), anl):
        return anl_op.forward(z, H, W, anl), (z,)
    u, kept = rank_space.forward(z, H, W, anl)
    return u, (u, *kept)


def _backward(
    du: Tensor, H: Tensor | None, W: Tensor | None, kept: tuple[Tensor | None, ...], anl: ANL
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """u, dz, dH, dW_s."""
    first, *rest = kept
    assert first is not None
    if anl.is_identity:
        return first, du, None, None
    if not rest:  # z alone, from which the operator begins again
        return anl_op.backward(du, first, H, W, anl)
    return first, *rank_space.backward(du, H, W, tuple(rest), anl)


class _Sigma(torch.autograd.Function):
    """sigma on (r, n)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> Tensor:
        u, kept = _forward(z, H, W, anl)
        ctx.anl = anl
        ctx.save_for_backward(H, W, *kept)
        return u

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        _refuse_double_backward()
        H, W, *kept = ctx.saved_tensors
        _, dz, dH, dW = _backward(du, H, W, tuple(kept), ctx.anl)
        return dz, _like(dH, H), _like(dW, W), None


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
        u, kept = _forward(A @ rows.T, H, W, anl)
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
        ctx.save_for_backward(x, A, B, H, W, weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _refuse_double_backward()
        x, A, B, H, W, weight, *kept = ctx.saved_tensors
        for_result, for_x, for_A, for_B = ctx.needs_input_grad[:4]
        G = grad.to(x.dtype)
        du = torch.addmm(kept[0].T, G, B, beta=0, alpha=ctx.scaling).T
        u, dz, dH, dW = _backward(du, H, W, tuple(kept), ctx.anl)
        dx = dA = dB = None
        if for_B:
            dB = torch.addmm(B, G.T, u.T, beta=0, alpha=ctx.scaling)
        if for_A:
            dA = dz @ x.reshape(-1, x.shape[-1])
        if for_x:
            dx = dz.T @ A if weight is None else (G @ weight).addmm_(dz.T, A)
            dx = dx.view(x.shape)
        return grad if for_result else None, dx, dA, dB, _like(dH, H), _like(dW, W), None, None


def _like(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if grad is None or weight is None else grad.to(weight.dtype)


__all__ = ["EAGER", "IDENTITY", "add_update", "is_fast", "linear", "sigma", "sigma_of_columns"]
