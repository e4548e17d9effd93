"""The update that an adapter makes, `result + s B sigma(A x)` (Eq. 4): what the layers call.

`IMPLEMENTATIONS` says which implementation of sigma serves where. Each computes `anl.adaptive_nonlinear`; another one
is a file `anl_*.py` beside these, with tests against that formula, and an entry in the table.

One with derivatives of its own runs within one autograd.Function with the whole backward derived by hand. Write x
(n, d_in), G = dloss/dresult (n, d_out), and everything in the rank space as (r, n). Forward:

    z = A x^T,   a = act(z),   b = act(H a),   u = [z +] b + L(z),   out = result + s u^T B^T     (one addmm)

and backward, with act' from act's own value:

    dB = s G^T u^T,   du = s B^T G^T,   dp = du act'(b),   dH = dp a^T,
    dz = [du +] (H^T dp) act'(a) + du L'(z),   dW_s = du . basis(z),   dA = dz x,   dx = dz^T A.

A plain frozen linear base is part of the same function: its products and the update are summed in place. Kept for the
backward pass are x, A and B, as in LoRA, and what the implementation asks for, a few values of (r, n). A backward pass
is not to be differentiated itself (`create_graph=True`): AURORA_LORA_EAGER=1 has autograd find it from the formula.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from .anl import ANL, Derivatives, Kept, adaptive_nonlinear
from .anl_aten import aten_backward, aten_forward
from .anl_triton import operator_backward, operator_forward, operator_sigma

# ---------------------------------------------------------------- the precision of products


def without_autocast(operand: Tensor) -> AbstractContextManager[Any]:
    """While entered, products on the operand's device are in the precision of what is multiplied."""
    if operand.is_meta or not torch.is_autocast_enabled(operand.device.type):  # meta tensors have no autocast
        return nullcontext()
    return torch.autocast(operand.device.type, enabled=False)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 products in float32 (no TF32 on a GPU, no bfloat16 on a CPU), whatever the process has chosen; that comes
    back.

    torch refuses to read one of its two switches after the other was set: from version 2.9 on, `fp32_precision` can
    always be.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    products, of_all = (backends.cuda.matmul, backends.mkldnn.matmul), backends.fp32_precision
    earlier = [matmul.fp32_precision for matmul in products]
    try:
        for matmul in products:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, precision in zip(products, earlier, strict=True):
            matmul.fp32_precision = "none" if precision == of_all else precision  # none: that of all, now and later


# ---------------------------------------------------------------- which implementation runs where

ENVIRONMENT = "AURORA_LORA_EAGER"
"""The environment variable that, set to 1, has the formula computed everywhere."""

MAX_RANK_OF_KERNEL = 64
MAX_WEIGHTS_OF_KERNEL = 4096
"""More rows of the rank space, or more entries of W_s, do not fit into a kernel's registers."""
MAX_RANK_IN_FLOAT64 = 8
"""Above it the kernels take `tl.dot`, which Triton 3.2 and 3.3 do not have in float64."""


class Differentiable(NamedTuple):
    """sigma on (..., r), whose derivatives autograd finds: (z, H, W_s, anl) -> u."""

    sigma: Callable[[Tensor, Tensor | None, Tensor | None, ANL], Tensor]


class ByHand(NamedTuple):
    """sigma on (r, n) with its derivatives written out, for the autograd functions below.

    forward: (z, H, W_s, anl) -> u, and what backward wants; backward: (du, H, W_s, kept, anl) -> u, dz, dH, dW_s.
    """

    forward: Callable[[Tensor, Tensor | None, Tensor | None, ANL], tuple[Tensor, Kept]]
    backward: Callable[[Tensor, Tensor | None, Tensor | None, Kept, ANL], Derivatives]


EAGER_MODE, COMPILED, OTHER = "eager mode", "torch.compile", "anything else"

FORMULA = Differentiable(adaptive_nonlinear)
ATEN = ByHand(aten_forward, aten_backward)
KERNEL = ByHand(operator_forward, operator_backward)
OPERATOR = Differentiable(operator_sigma)  # torch.compile sees one call each way, with the same kernels in it

IMPLEMENTATIONS: dict[str, tuple[Differentiable | ByHand, Differentiable | ByHand]] = {
    # (on a GPU that Triton serves, elsewhere)
    EAGER_MODE: (KERNEL, ATEN),
    COMPILED: (OPERATOR, FORMULA),  # Inductor makes one function of the formula on a CPU, on a GPU several
    OTHER: (FORMULA, FORMULA),
}


def choose(r: int, anl: ANL, *tensors: Tensor | None) -> Differentiable | ByHand:
    """The implementation of sigma, of rank r, for a call with these tensors; the first one is on the call's device."""
    mode = _mode(*tensors)
    with_kernel, elsewhere = IMPLEMENTATIONS[mode]
    return with_kernel if mode != OTHER and _has_kernel(tensors, r, anl) else elsewhere


def _mode(*tensors: Tensor | None) -> str:
    """Anything else: torch.export, whose program should run without this package, torch.jit.trace, the transforms of
    torch.func, forward-mode derivatives, subclasses of Tensor (DTensor, fake tensors), meta tensors, and where
    AURORA_LORA_EAGER=1 is set.
    """
    if _is_off():
        return OTHER
    for t in tensors:
        if t is not None and (type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta):
            return OTHER
    if torch.compiler.is_compiling():
        return OTHER if _is_exporting() else COMPILED
    is_traced = torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    return OTHER if is_traced or forward_ad._current_level >= 0 else EAGER_MODE


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_off() -> bool:
    return os.environ.get(ENVIRONMENT, "0") not in ("", "0")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_exporting() -> bool:
    """Asked while it traces: traced itself, `is_exporting` is always true up to torch 2.10. 2.6 cannot tell."""
    asked: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)
    return asked is None or asked()


def _has_kernel(tensors: Sequence[Tensor | None], r: int, anl: ANL) -> bool:
    z = tensors[0]
    assert z is not None
    dtypes = {t.dtype for t in tensors if t is not None}
    most = MAX_RANK_IN_FLOAT64 if torch.float64 in dtypes else MAX_RANK_OF_KERNEL
    fits = r <= most and r * anl.n_basis <= MAX_WEIGHTS_OF_KERNEL
    return fits and not anl.is_identity and _triton_serves(z.device.type, z.device.index, torch.bfloat16 in dtypes)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _triton_serves(device: str, index: int | None, in_bfloat16: bool) -> bool:
    if device == "cuda" and torch.is_autocast_enabled(device):
        in_bfloat16 = in_bfloat16 or torch.get_autocast_dtype(device) == torch.bfloat16
    return triton_serves(device, index, in_bfloat16)


@lru_cache(maxsize=64)
def triton_serves(device: str, index: int | None, in_bfloat16: bool = False) -> bool:
    """Whether Triton is there and compiles for this device: AMD's, and Nvidia's from Volta on, or from Ampere on in
    bfloat16, for which older ones have no instructions."""
    if device != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    oldest = (8, 0) if in_bfloat16 else (7, 0)
    new_enough = torch.version.hip is not None or torch.cuda.get_device_capability(index) >= oldest
    return new_enough and _can_launch()


@lru_cache(maxsize=1)
def _can_launch() -> bool:
    """Whether Triton can talk to the GPU: older ones build a library for that, and an image may lack a C compiler."""
    try:
        # no launch: this is also asked while a graph is traced, where there are no real tensors
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever a compiler, a loader or a driver raises
        warnings.warn(
            f"Triton cannot be used here, and AuroRA's layers are slower without it: {error or type(error).__name__}",
            stacklevel=2,
        )
        return False
    return True


# ---------------------------------------------------------------- the update


def sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma(z) as in `adaptive_nonlinear`, computed fast: z (..., r) -> (..., r)."""
    if anl.is_identity:
        return z
    chosen = choose(z.shape[-1], anl, z, H, spline_weight)
    if not isinstance(chosen, ByHand):
        return chosen.sigma(z, H, spline_weight, anl)
    with torch.autocast(z.device.type, enabled=False):
        rows = z.reshape(-1, z.shape[-1]).T  # (r, n)
        u: Tensor = _Sigma.apply(rows, H, spline_weight, anl, chosen)  # type: ignore[no-untyped-call, unused-ignore]
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
        out: Tensor = _Update.apply(rows, x, A, B, H, spline_weight, scaling, anl, chosen)  # type: ignore[no-untyped-call, unused-ignore]
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
    """`W0 x + bias + s B sigma(A x)`, (..., d_out), for a frozen base, all in one; None where that cannot be done.

    `weight` (d_out, d_in) and `bias` (d_out,) are not trained; the other arguments are those of `add_update`.
    """
    chosen = choose(A.shape[0], anl, x, weight, bias, A, B, H, spline_weight)
    if not isinstance(chosen, ByHand) or A.dtype != B.dtype or not can_fuse(x, weight, bias, B):
        return None
    out: Tensor = _Update.apply((weight, bias), x, A, B, H, spline_weight, scaling, anl, chosen)  # type: ignore[no-untyped-call, unused-ignore]
    return out.view(*x.shape[:-1], B.shape[0])


def _check_once() -> None:
    """Raise a RuntimeError within a backward pass that is to be differentiated: its second derivative would be lost."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"create_graph=True goes through AuroRA with {ENVIRONMENT}=1 alone")


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
        _check_once()
        z, H, W, *kept = ctx.saved_tensors
        with without_autocast(du):  # in the precision of its forward pass, wherever it is called
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
        _check_once()
        x, A, B, H, W, weight, *kept = ctx.saved_tensors
        for_result, for_x, for_A, for_B = ctx.needs_input_grad[:4]
        with without_autocast(grad):
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
