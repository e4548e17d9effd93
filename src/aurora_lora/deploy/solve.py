"""The calibrated matrix of each layer, from its moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import LayerMoments, Target, moment_of


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
    """A_cal = C (S + lambda I)^-1 for layers that share one input: one Cholesky factor serves them all.

    lambda = ridge * mean(diag S), raised tenfold until S + lambda I is positive definite. S is overwritten; beside it
    there are its factor, and a copy of the factor that `cholesky_solve` makes.
    """
    shared = layers[0].shared
    n = shared.vectors
    S = moment_of(shared).div_(n)
    scale = float(S.diagonal().mean())
    added = ridge * scale
    S.diagonal().add_(added)
    factor = None
    while scale > 0:
        factor, failed = torch.linalg.cholesky_ex(S)
        if not failed:
            break
        del factor
        more = max(10 * added, 1e-12 * scale)
        S.diagonal().add_(more - added)
        added = more
    solutions = []
    for layer in layers:
        for adapter, cross in layer.cross.items():
            C, power = cross / n, float(layer.power[adapter] / n)
            M = torch.zeros_like(C) if factor is None else torch.cholesky_solve(C.T, factor).T
            # E|sigma - Mx|^2 = E|sigma|^2 - 2 <M, C> + <M S, M>, from the sums: no second pass over the inputs
            error = power - 2 * float((M * C).sum()) + float(((M @ S) * M).sum() - added * M.square().sum())
            explained = 1 - error / power if power > 0 else 1.0
            solutions.append(Solution(layer.target, adapter, M, n, explained, added))
    return solutions
