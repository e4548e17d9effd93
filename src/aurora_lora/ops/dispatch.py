"""Which implementation of sigma runs where: `IMPLEMENTATIONS` says it, `choose` looks it up.

Each computes `anl.adaptive_nonlinear`. Another one is a file `anl_*.py` beside these, with tests against that formula,
and an entry here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .anl import ANL, Derivatives, Kept, adaptive_nonlinear
from .anl_aten import aten_backward, aten_forward
from .anl_operator import operator_backward, operator_forward, operator_sigma

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
    """sigma on (r, n) with its derivatives written out, for the autograd functions of `update.py`.

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
