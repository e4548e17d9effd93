"""The calibrated matrix of each layer, from its moments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tuner.tensors import gathered
from .moments import LayerMoments, Target, moment_of

RIDGES = (100.0, 1.0, 0.1, 0.01)
"""What is tried, in units of the mean of the diagonal of E[x x^T], from the largest; the least ridge comes last."""
_PROBES = 64
"""Random vectors that the trace of an inverse is estimated with."""
_TOLERANCE = 1e-10
"""The tolerance in the rank of E[z z^T]."""


@dataclass(frozen=True)
class Solution:
    """A_cal (r, d_in) of one adapter of one layer, and how good it is."""

    target: Target
    adapter: str
    matrix: Tensor
    vectors: int
    explained: float
    ridge: float


def solve(layers: list[LayerMoments], ridge: float) -> list[Solution]:
    """A_cal of layers that share one input: sigma as a linear map of z first, and of x what that leaves.

    D = argmin E|sigma - D z|^2, (r, r), is well determined by few vectors, which d_in numbers a row are not. So the
    ridge is one towards D A, and not towards 0:

        A_cal = argmin_M E|sigma - M x|^2 + lambda |M - D A|^2 = D A + (C - D A S) (S + lambda I)^-1

    with C = E[sigma x^T] and S = E[x x^T]. Of lambda = 100, 1, 0.1 and 0.01 times mean(diag S), and `ridge` times that,
    each layer takes the one with the least error by generalised cross-validation (Golub, Heath and Wahba, 1979), going
    down from the largest while that falls: with many vectors the smallest, with few hardly more than D A.

    One Cholesky factor of each ridge serves all the layers. S is overwritten; beside it there are its factor, and a
    copy of the factor that `cholesky_solve` makes.
    """
    shared = layers[0].shared
    n = shared.vectors
    S = moment_of(shared).div_(n)
    scale = float(S.diagonal().mean())
    fits = [_Fit(layer, adapter, S, n) for layer in layers for adapter in layer.cross]
    improving, added = fits, 0.0
    for each in sorted({ridge, *(one for one in RIDGES if one > ridge)}, reverse=True):
        S.diagonal().add_(each * scale - added)
        added = each * scale
        factor, failed = torch.linalg.cholesky_ex(S)
        if failed:  # inputs that are all zero, or no ridge for fewer vectors than dimensions
            break
        freedom = _freedom(factor, added)
        improving = [fit for fit in improving if fit.improve(S, factor, added, freedom)]
        del factor
        if not improving:
            break
    return [fit.solution() for fit in fits]


def _freedom(factor: Tensor, added: float) -> float:
    """tr(S (S + lambda I)^-1), the degrees of freedom of a row of the matrix; from the factor of S + lambda I."""
    if not added:
        return float(len(factor))
    signs = torch.randint(2, (len(factor), _PROBES), generator=torch.Generator().manual_seed(0), device="cpu")
    probes = (2 * signs - 1).to(factor)
    trace = (probes * torch.cholesky_solve(probes, factor)).sum() / _PROBES
    return len(factor) - added * float(trace)


class _Fit:
    """The best matrix so far of one adapter of one layer."""

    def __init__(self, layer: LayerMoments, adapter: str, S: Tensor, n: int) -> None:
        self.target, self.adapter, self.vectors = layer.target, adapter, n
        C, self.power = layer.cross[adapter] / n, float(layer.power[adapter] / n)
        A = gathered(layer.target.module.aurora_A[adapter].detach()).to(C)
        z = A @ S @ A.T  # E[z z^T]
        D = (C @ A.T) @ torch.linalg.pinv(z, rtol=_TOLERANCE, hermitian=True)
        self.rank = int(torch.linalg.matrix_rank(z, rtol=_TOLERANCE, hermitian=True))
        self.linear = D @ A
        self.rest = C - self.linear @ S  # E[(sigma - D z) x^T]
        # E|sigma - M x|^2 = E|sigma|^2 - <M, C> - <M, C - M S>, from the sums: no second pass over the inputs
        self.error = self.power - float((self.linear * (C + self.rest)).sum())
        self.matrix, self.left, self.ridge = self.linear, self.error, 0.0
        self.score = math.inf

    def improve(self, S: Tensor, factor: Tensor, added: float, freedom: float) -> bool:
        """Take the matrix of a ridge if it is the better one; S and the factor are those of S + lambda I."""
        M = torch.cholesky_solve(self.rest.T, factor).T
        left = self.error - 2 * float((M * self.rest).sum()) + float(((M @ S) * M).sum() - added * M.square().sum())
        free = 1 - (freedom + self.rank) / self.vectors
        score = left / free**2 if free > 0 else math.inf
        if self.ridge and score >= self.score:
            return False
        self.matrix, self.left, self.ridge, self.score = self.linear + M, left, added, score
        return True

    def solution(self) -> Solution:
        """The best matrix."""
        explained = 1 - self.left / self.power if self.power > 0 else 1.0
        return Solution(self.target, self.adapter, self.matrix, self.vectors, explained, self.ridge)
