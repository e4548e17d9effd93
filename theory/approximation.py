"""Proposition 2.1: what no adapter B sigma(A x) of rank r can pass, and the best linear map, both in closed form.

The output of an adapter lies in the column space of B. With P the projection onto that space, for every A and sigma

    |f(x) - B sigma(A x)| >= |(I - P) f(x)|

at every x. For f(x) = M x the supremum over the unit ball is thus at least |(I - P) M|_2 >= the (r+1)-th singular value
of M, and for E[x x^T] = I the mean square error is at least |(I - P) M|_F^2 >= the sum of the squared singular values
past r. Both are the errors of the truncated singular value decomposition, which is linear. For any f, the mean square
error is at least the sum of the eigenvalues past r of E[f(x) f(x)^T].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aurora_lora.ops import ANL, adaptive_nonlinear


class Adapter(NamedTuple):
    """The weights of one adapter, without scaling, in float64: A (r, d_in), B (d_out, r), H (r, r), W_s (r, K)."""

    A: Tensor
    B: Tensor
    H: Tensor
    spline_weight: Tensor


def update(adapter: Adapter, x: Tensor, anl: ANL) -> Tensor:
    """B sigma(A x) (Eq. 4), x (n, d_in) -> (n, d_out)."""
    return adaptive_nonlinear(x @ adapter.A.T, adapter.H, adapter.spline_weight, anl) @ adapter.B.T


def isotropic_inputs(n: int, d_in: int, generator: torch.Generator) -> Tensor:
    """n Gaussian inputs (n, d_in), turned and stretched so that their second moment x^T x / n is the identity exactly.

    The bounds for isotropic inputs then hold on these very inputs, with nothing left to sampling.
    """
    x = torch.randn(n, d_in, dtype=torch.float64, generator=generator)
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    turned: Tensor = n**0.5 * (U @ Vh)
    return turned


def mean_square(errors: Tensor) -> float:
    """E|e|^2, for e (n, d)."""
    return float(errors.square().sum(1).mean())


def linear_floor(M: Tensor, r: int) -> tuple[float, float]:
    """For M (d_out, d_in): the least mean square error for isotropic x, and the least supremum over |x| <= 1.

    They hold for every adapter of rank r, and truncated SVD attains both.
    """
    values = torch.linalg.svdvals(M)
    past = values[r:]
    return float(past.square().sum()), float(past[0]) if len(past) else 0.0


def output_floor(f: Tensor, r: int) -> float:
    """The least mean square error of any adapter of rank r on the targets f (n, d_out), whatever sigma is."""
    values = torch.linalg.eigvalsh(f.T @ f / len(f))
    return float(values[: max(f.shape[1] - r, 0)].clamp_min(0).sum())


def best_linear(x: Tensor, f: Tensor, r: int | None = None) -> Tensor:
    """The matrix P (d_out, d_in) of rank r with the least E|f - P x|^2, exact; of any rank for None.

    With S = E[x x^T] it is the truncated SVD of E[f x^T] S^(-1/2), times S^(-1/2) (reduced-rank regression).

    Args:
        x: (n, d_in), with a second moment that can be inverted.
        f: (n, d_out).
        r: rank.
    """
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    root = vectors * values.rsqrt() @ vectors.T
    U, singular, Vh = torch.linalg.svd((f.T @ x / len(x)) @ root, full_matrices=False)
    P: Tensor = (U[:, :r] * singular[:r]) @ Vh[:r] @ root
    return P


def supremum(
    adapter: Adapter, M: Tensor, anl: ANL, generator: torch.Generator, starts: int = 64, steps: int = 60
) -> float:
    """The largest |M x - B sigma(A x)| over |x| <= 1 that ascent from many starts finds: from below.

    One of the starts is the top right singular vector of (I - P) M, where the error is |(I - P) M|_2 at least.
    """
    projection = adapter.B @ torch.linalg.pinv(adapter.B)
    _, _, Vh = torch.linalg.svd(M - projection @ M)
    x = torch.randn(starts, M.shape[1], dtype=torch.float64, generator=generator)
    x = torch.cat([x / x.norm(dim=1, keepdim=True), Vh[:1], -Vh[:1]])
    best = 0.0
    step = 0.5
    for _ in range(steps + 1):
        x.requires_grad_()
        errors = (x @ M.T - update(adapter, x, anl)).norm(dim=1)
        best = max(best, float(errors.detach().max()))
        (gradient,) = torch.autograd.grad(errors.sum(), x)
        moved = x.detach() + step * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
        x = moved / moved.norm(dim=1, keepdim=True).clamp_min(1.0)
        step *= 0.95
    return best
