# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, valid-type, index, unused-ignore"
"""sigma on (r, n) as one operator each way, `torch.ops.aurora_lora.anl` and `anl_backward`, and its Triton kernels.

On CUDA each operator is one launch of a kernel, the same sums as `anl.adaptive_nonlinear`. On the CPU they are the same
in plain torch (`anl_aten`), for tests, and for what was traced for CUDA and runs elsewhere; the package itself does not
call them there. torch.compile sees one opaque call, from which z alone is kept for the backward pass. Without Triton
the operators are there, and the kernels are not.

A program has a tile (R, BLOCK) of the rank space (r, n) in registers, R being r padded to a power of two: whole
columns, so that H mixes them on the spot. The basis functions are taken one after the other in closed form (`spline`),
so any K and any order are served, and nothing of the size K n exists. Backward computes everything again from z. What
is summed over the columns, dH and dW_s, leaves each program as a partial sum of its own: no atomics, so that two runs
agree bit for bit.

bfloat16 and float16 are computed in float32, float64 in float64.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from .anl import ANL, LEAKY_RELU_SLOPE, Activation, Derivatives, Kept, Spline
from .anl_aten import aten_backward, aten_forward

try:
    import triton
    import triton.language as tl
except ImportError:  # there is none for this platform
    _SLOPE: Any = LEAKY_RELU_SLOPE

    def jit(function: Any) -> Any:
        """The function as it is, which nothing calls."""
        return function
else:
    _SLOPE = tl.constexpr(LEAKY_RELU_SLOPE)
    jit = triton.jit


# ---------------------------------------------------------------- pieces of the kernels


@jit
def _tanh(x):
    # 1 - 2 / (exp(2 x) + 1) loses its digits near 0; there Lambert's continued fraction, cut after the 13, is exact.
    y = x * x
    near = x * (135135.0 + y * (17325.0 + y * (378.0 + y))) / (135135.0 + y * (62370.0 + y * (3150.0 + y * 28.0)))
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return tl.where(tl.abs(x) < 0.4, near, far)


@jit
def _act(x, NAME: tl.constexpr):
    """Eq. 6's activation. Each comparison is such that a NaN stays one."""
    if NAME == "tanh":
        return _tanh(x)
    elif NAME == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif NAME == "relu":
        return tl.where(x <= 0.0, 0.0, x)
    else:
        return tl.where(x <= 0.0, x * _SLOPE, x)


@jit
def _act_backward(grad, value, NAME: tl.constexpr):
    """grad * act'(.), from act's value."""
    if NAME == "tanh":
        return grad * (1.0 - value * value)
    elif NAME == "sigmoid":
        return grad * value * (1.0 - value)
    elif NAME == "relu":
        return tl.where(value <= 0.0, 0.0, grad)
    else:
        return tl.where(value <= 0.0, grad * _SLOPE, grad)


@jit
def _matmul(a, b, DTYPE: tl.constexpr):
    """a (R, R) @ b (R, BLOCK). Tensor cores want 16 rows; fewer are summed in registers."""
    if a.shape[0] >= 16:
        return tl.dot(a, b, input_precision="ieee", out_dtype=DTYPE)
    else:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)


@jit
def _outer(a, b, DTYPE: tl.constexpr):
    """a (R, BLOCK) @ b^T (BLOCK, R)."""
    if a.shape[0] >= 16:
        return tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=DTYPE)
    else:
        return tl.sum(a[:, None, :] * b[None, :, :], 2)


@jit
def _truncated_powers(distance, ORDER: tl.constexpr, POWER: tl.constexpr, FACTORIAL: tl.constexpr):
    """1/POWER! sum_j (-1)^j C(ORDER + 1, j) ((ORDER + 1)/2 - j - distance)_+^POWER, as `spline._truncated_powers`."""
    total = tl.zeros_like(distance)
    binomial = 1.0
    for j in tl.static_range((ORDER + 2) // 2):
        left = (ORDER + 1) * 0.5 - j - distance
        power = tl.full(distance.shape, 1.0, distance.dtype)
        for _ in tl.static_range(POWER):
            power *= left
        total += tl.where(left <= 0.0, 0.0, binomial * power)
        binomial = -binomial * (ORDER - j + 1) / (j + 1)
    return total / FACTORIAL


@jit
def _basis(u, ORDER: tl.constexpr, FACTORIAL: tl.constexpr):
    """beta_ORDER(u)."""
    if ORDER == 0:
        return tl.where((u < -0.5) | (u >= 0.5), 0.0, u * 0.0 + 1.0)
    else:
        return _truncated_powers(tl.abs(u), ORDER, ORDER, FACTORIAL)


@jit
def _basis_derivative(u, ORDER: tl.constexpr, FACTORIAL: tl.constexpr):
    """d beta_ORDER / du."""
    if ORDER == 0:
        return tl.zeros_like(u)
    else:
        falling = _truncated_powers(tl.abs(u), ORDER, ORDER - 1, FACTORIAL / ORDER)
        return tl.where(u > 0.0, -falling, tl.where(u < 0.0, falling, u * 0.0))


@jit
def _at(rows, columns, stride_row, stride_column):
    """Offsets of a tile; in 64 bits, since r n may pass 2^31."""
    return rows.to(tl.int64)[:, None] * stride_row + columns.to(tl.int64)[None, :] * stride_column


# ---------------------------------------------------------------- the kernels


@jit
def _forward_kernel(
    z_at,
    H_at,
    W_at,
    u_at,
    n,
    z_row,
    z_column,
    r: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    FACTORIAL: tl.constexpr,
    LOW: tl.constexpr,
    STEP: tl.constexpr,
    ACT: tl.constexpr,
    SPLINE: tl.constexpr,
    SKIP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, R)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < r)[:, None] & (columns < n)[None, :]
    z = tl.load(z_at + _at(rows, columns, z_row, z_column), mask=inside, other=0.0).to(DTYPE)
    u = z if SKIP else tl.zeros_like(z)
    if ACT != "none":
        square = (rows < r)[:, None] & (rows < r)[None, :]
        H = tl.load(H_at + rows[:, None] * r + rows[None, :], mask=square, other=0.0).to(DTYPE)
        u += _act(_matmul(H, _act(z, ACT), DTYPE), ACT)
    if SPLINE != "none":
        position = (z - LOW) / STEP + (ORDER - 1) * 0.5
        for k in range(K):
            weight = tl.load(W_at + rows * K + k, mask=rows < r, other=0.0).to(DTYPE)
            value = _basis(position - k, ORDER, FACTORIAL)
            if SPLINE == "summed":
                value = tl.sum(tl.where(inside, value, 0.0), 0)[None, :]
            u += weight[:, None] * value
    tl.store(u_at + _at(rows, columns, n, 1), u.to(u_at.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    du_at,
    z_at,
    H_at,
    W_at,
    u_at,
    dz_at,
    partial_at,
    n,
    du_row,
    du_column,
    z_row,
    z_column,
    r: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ORDER: tl.constexpr,
    FACTORIAL: tl.constexpr,
    LOW: tl.constexpr,
    STEP: tl.constexpr,
    ACT: tl.constexpr,
    SPLINE: tl.constexpr,
    SKIP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial (programs, [r r] + [r K]): dH and dW_s, summed over the columns that a program has seen."""
    rows = tl.arange(0, R)
    functions = tl.arange(0, K_PADDED)
    square = (rows < r)[:, None] & (rows < r)[None, :]
    dH = tl.zeros((R, R), DTYPE)
    dW = tl.zeros((R, K_PADDED), DTYPE)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (rows < r)[:, None] & (columns < n)[None, :]
        z = tl.load(z_at + _at(rows, columns, z_row, z_column), mask=inside, other=0.0).to(DTYPE)
        du = tl.load(du_at + _at(rows, columns, du_row, du_column), mask=inside, other=0.0).to(DTYPE)
        u = z if SKIP else tl.zeros_like(z)
        dz = du if SKIP else tl.zeros_like(du)
        if ACT != "none":
            H = tl.load(H_at + rows[:, None] * r + rows[None, :], mask=square, other=0.0).to(DTYPE)
            a = _act(z, ACT)
            b = _act(_matmul(H, a, DTYPE), ACT)
            dp = _act_backward(du, b, ACT)
            u += b
            dz += _act_backward(_matmul(tl.trans(H), dp, DTYPE), a, ACT)
            dH += _outer(dp, a, DTYPE)
        if SPLINE != "none":
            position = (z - LOW) / STEP + (ORDER - 1) * 0.5
            for k in range(K):
                weight = tl.load(W_at + rows * K + k, mask=rows < r, other=0.0).to(DTYPE)
                value = _basis(position - k, ORDER, FACTORIAL)
                slope = _basis_derivative(position - k, ORDER, FACTORIAL) / STEP
                if SPLINE == "summed":
                    value = tl.sum(tl.where(inside, value, 0.0), 0)[None, :]
                    dz += slope * tl.sum(weight[:, None] * du, 0)[None, :]
                else:
                    dz += slope * weight[:, None] * du
                u += weight[:, None] * value
                dW += tl.where((functions == k)[None, :], tl.sum(du * value, 1)[:, None], 0.0)
        tl.store(u_at + _at(rows, columns, n, 1), u.to(u_at.dtype.element_ty), mask=inside)
        tl.store(dz_at + _at(rows, columns, n, 1), dz.to(dz_at.dtype.element_ty), mask=inside)
    mixer: tl.constexpr = r * r if ACT != "none" else 0
    entries: tl.constexpr = mixer + (r * K if SPLINE != "none" else 0)
    to = partial_at + tl.program_id(0) * entries
    if ACT != "none":
        tl.store(to + rows[:, None] * r + rows[None, :], dH, mask=square)
    if SPLINE != "none":
        real = (rows < r)[:, None] & (functions < K)[None, :]
        tl.store(to + mixer + rows[:, None] * K + functions[None, :], dW, mask=real)


# ---------------------------------------------------------------- launches


@lru_cache(maxsize=64)
def _constants(r: int, dtype: torch.dtype, anl: ANL) -> dict[str, Any]:
    """What a kernel is compiled for."""
    padded = triton.next_power_of_2(r)
    low, high = anl.spline_range
    return {
        "r": r,
        "R": padded,
        "K": anl.n_basis,
        "ORDER": anl.spline_order,
        "FACTORIAL": float(math.factorial(anl.spline_order)),
        "LOW": float(low),
        "STEP": (high - low) / anl.spline_grid_size,
        "ACT": anl.fixed_activation or "none",
        "SPLINE": anl.spline or "none",
        "SKIP": anl.skip,
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        **_tile(padded),
        # Triton 3.10 stops fusing products and sums by default; eager CUDA does fuse.
        "enable_fp_fusion": True,
    }


def _tile(padded: int) -> dict[str, int]:
    """The shape of a tile and the warps that share it: compiled for sm_90, the float32 kernels do not spill."""
    block = 64 if padded <= 4 else 32 if padded <= 16 else 16
    return {"BLOCK": block, "num_warps": 4 if padded <= 8 else 8}


def _programs(n: int, entries: int, block: int) -> int:
    """How many share the n columns in the backward pass. Their partial sums are bounded: 4 MB at r = 64 and K = 8."""
    return min(-(-n // block), max(64, min(1024, 2**20 // max(1, entries))))


def _on(z: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be z's."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def triton_forward(z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> Tensor:
    """sigma of each column of z (r, n), r <= 64, of any strides: (r, n), contiguous, in z's dtype."""
    r, n = z.shape
    constants = _constants(r, z.dtype, anl)
    u = z.new_empty(r, n)
    if n:
        grid = (triton.cdiv(n, constants["BLOCK"]),)
        with _on(z):
            _forward_kernel[grid](z, _rows(H, z), _rows(W, z), u, n, *z.stride(), **constants)
    return u


def triton_backward(
    du: Tensor, z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of `triton_forward`, from z alone, for the gradient du (r, n) of any strides.

    Returns:
        u (r, n) again, for dB; dz (r, n); and the entries of dH and dW_s, (r r + r K,), in at least float32. A part
        that sigma lacks has none.
    """
    r, n = z.shape
    constants = _constants(r, z.dtype, anl)
    u, dz = z.new_empty(r, n), z.new_empty(r, n)
    entries = sum(anl.weight_sizes(r))
    programs = _programs(n, entries, constants["BLOCK"])
    partial = z.new_empty(programs, entries, dtype=torch.promote_types(z.dtype, torch.float32))
    if n:
        strides = (*du.stride(), *z.stride())
        padded = triton.next_power_of_2(anl.n_basis)
        with _on(z):
            _backward_kernel[(programs,)](
                du, z, _rows(H, z), _rows(W, z), u, dz, partial, n, *strides, K_PADDED=padded, **constants
            )
    return u, dz, partial.sum(0)


def _rows(weight: Tensor | None, instead: Tensor) -> Tensor:
    """A weight without gaps; for one that there is not, any tensor: the kernel never looks."""
    return instead if weight is None else weight.contiguous()


# ---------------------------------------------------------------- as functions of an ANL


def operator_sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma of z (..., r), as `adaptive_nonlinear`; autograd knows the operator's derivatives."""
    u: Tensor = anl_forward(z.reshape(-1, z.shape[-1]).T, H, spline_weight, *_flat(anl))
    return u.T.reshape(z.shape)


def operator_forward(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> tuple[Tensor, Kept]:
    """sigma of each column of z (r, n), in z's dtype; and z, which is all that is kept."""
    return anl_forward(z, H, spline_weight, *_flat(anl)), (z,)


def operator_backward(du: Tensor, H: Tensor | None, spline_weight: Tensor | None, kept: Kept, anl: ANL) -> Derivatives:
    """u (r, n) again and dz (r, n), in z's dtype; dH (r, r) and dW_s (r, K), in at least float32."""
    (z,) = kept
    assert z is not None
    u, dz, weights = anl_backward(du, z, H, spline_weight, *_flat(anl))
    # contiguous views, which autograd takes as they are for the gradients of the parameters
    parts = zip(weights.split(anl.weight_sizes(len(z))), (H, spline_weight), strict=True)
    dH, dW = (None if weight is None else entries.view(weight.shape) for entries, weight in parts)
    return u, dz, dH, dW


def _flat(anl: ANL) -> tuple[str | None, str | None, int, int, float, float, bool]:
    low, high = anl.spline_range
    return anl.fixed_activation, anl.spline, anl.spline_grid_size, anl.spline_order, low, high, anl.skip


_ANL = "str? fixed_activation, str? spline, SymInt grid_size, SymInt order, float low, float high, bool skip"
_WEIGHTS = "Tensor? H, Tensor? spline_weight"


class _Checked(ANL):
    """An ANL of what `_flat` has taken from one: it is not checked in each call, nor where sizes are symbols."""

    def __post_init__(self) -> None:
        self.derive()


def _anl(fixed_activation: str, spline: str, grid_size: int, order: int, low: float, high: float, skip: bool) -> ANL:
    activation = cast("Activation", fixed_activation)
    return _Checked(activation, cast("Spline", spline), grid_size, order, (low, high), skip=skip)


# ---------------------------------------------------------------- the operators


@torch.library.custom_op(
    "aurora_lora::anl", mutates_args=(), device_types="cuda", schema=f"(Tensor z, {_WEIGHTS}, {_ANL}) -> Tensor"
)
def anl_forward(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    """u (r, n), contiguous."""
    return triton_forward(z, H, spline_weight, _anl(*flat))


@torch.library.custom_op(
    "aurora_lora::anl_backward",
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor du, Tensor z, {_WEIGHTS}, {_ANL}) -> (Tensor, Tensor, Tensor)",
)
def anl_backward(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """u and dz (r, n), contiguous, and the entries of dH and dW_s, one after the other, (r r + r K,)."""
    return triton_backward(du, z, H, spline_weight, _anl(*flat))


@anl_forward.register_kernel("cpu")
def _(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    return aten_forward(z, H, spline_weight, _anl(*flat))[0].contiguous()


@anl_backward.register_kernel("cpu")
def _(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    anl = _anl(*flat)
    _, kept = aten_forward(z, H, spline_weight, anl)
    u, dz, *weights = aten_backward(du, H, spline_weight, kept, anl)
    return u.contiguous(), dz.contiguous(), torch.cat([dw.flatten() for dw in weights if dw is not None])


@anl_forward.register_fake
def _(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    return z.new_empty(z.shape)


@anl_backward.register_fake
def _(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    entries = sum(_anl(*flat).weight_sizes(len(z)))
    weights = z.new_empty(entries, dtype=torch.promote_types(z.dtype, torch.float32))
    return z.new_empty(z.shape), z.new_empty(z.shape), weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, H, spline_weight, *flat = inputs
    ctx.flat = flat
    ctx.save_for_backward(z, H, spline_weight)


def _differentiate(ctx: Any, du: Tensor) -> Any:
    z, H, spline_weight = ctx.saved_tensors
    _, dz, dH, dW = operator_backward(du, H, spline_weight, (z,), _anl(*ctx.flat))
    gradients = [None if g is None else g.to(w.dtype) for g, w in ((dH, H), (dW, spline_weight))]
    return dz, *gradients, *[None] * len(ctx.flat)


anl_forward.register_autograd(_differentiate, setup_context=_keep)
