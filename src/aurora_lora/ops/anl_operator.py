"""`torch.ops.aurora_lora.anl` and `anl_backward`: sigma on (r, n) as one operator each way.

On CUDA each is one launch of a Triton kernel (`anl_triton`). On the CPU the operators are the same in plain torch
(`anl_aten`), for tests, and for what was traced for CUDA and runs elsewhere; the package itself does not call them
there. torch.compile sees one opaque call, from which z alone is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .anl import ANL, Activation, Derivatives, Kept, Spline
from .anl_aten import aten_backward, aten_forward

# ---------------------------------------------------------------- as functions of an ANL


def operator_sigma(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma of z (..., r), as `adaptive_nonlinear`; autograd knows the operator's derivatives."""
    u: Tensor = anl_forward(z.reshape(-1, z.shape[-1]).T, H, spline_weight, *_flat(anl))
    return u.T.reshape(z.shape)


def operator_forward(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> tuple[Tensor, Kept]:
    """sigma of each column.

    Args:
        z: (r, n), of any strides.
        H, spline_weight, anl: as in `adaptive_nonlinear`.

    Returns:
        u (r, n) in z's dtype, and z, which is all that is kept; bfloat16 and float16 are computed in float32.
    """
    return anl_forward(z, H, spline_weight, *_flat(anl)), (z,)


def operator_backward(du: Tensor, H: Tensor | None, spline_weight: Tensor | None, kept: Kept, anl: ANL) -> Derivatives:
    """u (r, n) again and dz (r, n), in z's dtype; dH (r, r) and dW_s (r, K), in at least float32."""
    (z,) = kept
    assert z is not None
    u, dz, weights = anl_backward(du, z, H, spline_weight, *_flat(anl))
    # contiguous views, which autograd takes as they are for the gradients of the parameters
    dH, dW = weights.split(anl.weight_sizes(len(z)))
    return u, dz, _as_weight(dH, H), _as_weight(dW, spline_weight)


def _as_weight(entries: Tensor, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else entries.view(weight.shape)


def _flat(anl: ANL) -> tuple[str | None, str | None, int, int, float, float, bool]:
    low, high = anl.spline_range
    return anl.fixed_activation, anl.spline, anl.spline_grid_size, anl.spline_order, low, high, anl.skip


_ANL = "str? fixed_activation, str? spline, SymInt grid_size, SymInt order, float low, float high, bool skip"
_WEIGHTS = "Tensor? H, Tensor? spline_weight"


class _Checked(ANL):
    """An ANL of what `_flat` has taken from one: it is not checked in each call, nor where sizes are symbols."""

    def __post_init__(self) -> None:
        """Nothing."""


def _anl(fixed_activation: str, spline: str, grid_size: int, order: int, low: float, high: float, skip: bool) -> ANL:
    activation = cast("Activation", fixed_activation)
    return _Checked(activation, cast("Spline", spline), grid_size, order, (low, high), skip=skip)


# ---------------------------------------------------------------- the operators


@torch.library.custom_op(
    "aurora_lora::anl", mutates_args=(), device_types="cuda", schema=f"(Tensor z, {_WEIGHTS}, {_ANL}) -> Tensor"
)
def anl_forward(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    """u (r, n), contiguous."""
    from .anl_triton import triton_forward

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
    from .anl_triton import triton_backward

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
