"""`torch.ops.aurora_lora.anl` and `anl_backward`: sigma on (r, n) as one operator each way.

On CUDA each is one launch of a Triton kernel (`triton_anl`). On the CPU the operators are the same in plain torch
(`rank_space`), for tests, and for what was traced for CUDA and runs elsewhere; the package itself does not call them
there. torch.compile sees one opaque call, from which z alone is kept for the backward pass.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import rank_space
from .anl import ANL

MAX_RANK = 64
MAX_WEIGHTS = 4096
"""More rows of the rank space, or more entries of W_s, do not fit into a kernel's registers."""


@lru_cache(maxsize=64)
def runs_on(device: str, index: int | None) -> bool:
    """Whether Triton is there and compiles for this device: AMD's, and Nvidia's from Volta on."""
    if device != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    new_enough = torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (7, 0)
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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _serves_device(device: str, index: int | None) -> bool:
    return runs_on(device, index)


def serves(z: Tensor, r: int, anl: ANL) -> bool:
    """Whether sigma of a (r, n) that is on z's device should be computed by these operators."""
    fits = r <= MAX_RANK and r * anl.n_basis <= MAX_WEIGHTS
    return fits and not anl.is_identity and _serves_device(z.device.type, z.device.index)


def weight_sizes(r: int, anl: ANL) -> tuple[int, int]:
    """The numbers of entries of dH and of dW_s; 0 for a part that sigma lacks."""
    return r * r if anl.fixed_activation else 0, r * anl.n_basis if anl.spline else 0


# ---------------------------------------------------------------- as functions of an ANL


def forward(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma of each column.

    Args:
        z: (r, n), of any strides.
        H, spline_weight, anl: as in `adaptive_nonlinear`.

    Returns:
        u (r, n) in z's dtype; bfloat16 and float16 are computed in float32.
    """
    u: Tensor = anl_forward(z, H, spline_weight, *_flat(anl))
    return u


def backward(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """u (r, n) again and dz (r, n), in z's dtype; dH (r, r) and dW_s (r, K), in at least float32."""
    u, dz, weights = anl_backward(du, z, H, spline_weight, *_flat(anl))
    # contiguous views, which autograd takes as they are for the gradients of the parameters
    dH, dW = weights.split(weight_sizes(len(z), anl))
    return u, dz, _as_weight(dH, H), _as_weight(dW, spline_weight)


def _as_weight(entries: Tensor, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else entries.view(weight.shape)


def _flat(anl: ANL) -> tuple[str | None, str | None, int, int, float, float, bool]:
    low, high = anl.spline_range
    return anl.fixed_activation, anl.spline, anl.grid_size, anl.order, low, high, anl.skip


def _anl(
    fixed_activation: str | None, spline: str | None, grid_size: int, order: int, low: float, high: float, skip: bool
) -> ANL:
    return ANL(fixed_activation, spline, grid_size, order, (low, high), skip)


# ---------------------------------------------------------------- the operators


@torch.library.custom_op("aurora_lora::anl", mutates_args=(), device_types="cuda")
def anl_forward(
    z: Tensor,
    H: Tensor | None,
    spline_weight: Tensor | None,
    fixed_activation: str | None,
    spline: str | None,
    grid_size: int,
    order: int,
    low: float,
    high: float,
    skip: bool,
) -> Tensor:
    """u (r, n), contiguous."""
    from . import triton_anl

    anl = _anl(fixed_activation, spline, grid_size, order, low, high, skip)
    return triton_anl.forward(z, H, spline_weight, anl)


@torch.library.custom_op("aurora_lora::anl_backward", mutates_args=(), device_types="cuda")
def anl_backward(
    du: Tensor,
    z: Tensor,
    H: Tensor | None,
    spline_weight: Tensor | None,
    fixed_activation: str | None,
    spline: str | None,
    grid_size: int,
    order: int,
    low: float,
    high: float,
    skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """u and dz (r, n), contiguous, and the entries of dH and dW_s, one after the other, (r r + r K,)."""
    from . import triton_anl

    anl = _anl(fixed_activation, spline, grid_size, order, low, high, skip)
    return triton_anl.backward(du, z, H, spline_weight, anl)


@anl_forward.register_kernel("cpu")
def _(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    return rank_space.forward(z, H, spline_weight, _anl(*flat))[0].contiguous()


@anl_backward.register_kernel("cpu")
def _(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    anl = _anl(*flat)
    u, kept = rank_space.forward(z, H, spline_weight, anl)
    dz, *weights = rank_space.backward(du, H, spline_weight, kept, anl)
    return u.contiguous(), dz.contiguous(), torch.cat([dw.flatten() for dw in weights if dw is not None])


@anl_forward.register_fake
def _(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any) -> Tensor:
    return z.new_empty(z.shape)


@anl_backward.register_fake
def _(
    du: Tensor, z: Tensor, H: Tensor | None, spline_weight: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    weights = z.new_empty(sum(weight_sizes(len(z), _anl(*flat))), dtype=wide)
    return z.new_empty(z.shape), z.new_empty(z.shape), weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, H, spline_weight, *flat = inputs
    ctx.flat = flat
    ctx.save_for_backward(z, H, spline_weight)


def _differentiate(ctx: Any, du: Tensor) -> Any:
    z, H, spline_weight = ctx.saved_tensors
    anl = _anl(*ctx.flat)
    _, dz, dH, dW = backward(du, z, H, spline_weight, anl)
    gradients = [None if g is None else g.to(w.dtype) for g, w in ((dH, H), (dW, spline_weight))]
    return dz, *gradients, *[None] * len(ctx.flat)


anl_forward.register_autograd(_differentiate, setup_context=_keep)
