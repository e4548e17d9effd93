"""The adapter path `result + s B sigma(A x)` (Eq. 4): the eager reference."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from .anl import ANL, adaptive_nonlinear


def add_update(
    result: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    H: Tensor | None,
    spline_weight: Tensor | None,
    scaling: float,
    anl: ANL,
    sigma: Callable[[Tensor, Tensor | None, Tensor | None, ANL], Tensor] = adaptive_nonlinear,
) -> Tensor:
    """result + s B sigma(A x). With the identity for sigma, and sigma(A) or A_cal for A, it is a linear form (Eq. 9).

    Args:
        result: (..., d_out), the output of the base layer.
        x: (..., d_in), in A's dtype, or under autocast.
        A: (r, d_in).
        B: (d_out, r).
        H, spline_weight, anl: as in `adaptive_nonlinear`.
        scaling: s = alpha / r.
        sigma: what computes the ANL.

    Returns:
        (..., d_out) in the dtype of `result`.
    """
    z = sigma(functional.linear(x, A), H, spline_weight, anl)
    return result + functional.linear(z * scaling, B).to(result.dtype)
