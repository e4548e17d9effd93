"""Appendix C: A (1, 2), B (2, 1) and LeakyReLU with slope alpha, the merged (static) update dW = B sigma(A).

With sigma(a) = a for a > 0 and alpha a for a <= 0, each of the paper's four matrices is the outer product of (b_1, b_2)
and (sigma(a_1), sigma(a_2)). So its rank is 1 at most, as LoRA's; and since LeakyReLU is a bijection of the reals, the
set of all of them is LoRA's set: B A' = B sigma(A) for A' = sigma(A), and B sigma(A') = B A for A' = sigma^(-1)(A).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aurora_lora.ops import ANL

from .search import fit_best

CASES = ("+ +", "- +", "+ -", "- -")
"""Signs of a_1 and a_2, in the order of Eq. 11."""
REACHES = {
    "LoRA": ANL(None, None, skip=True),
    "tanh": ANL("tanh", None, skip=False),
    "leaky_relu": ANL("leaky_relu", None, skip=False),
    "sigmoid": ANL("sigmoid", None, skip=False),
    "relu": ANL("relu", None, skip=False),
    "spline": ANL(None, skip=False),
}


def printed(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """The matrix that Eq. 11 prints for its case, entry by entry, (n, 2, 2): a, b (n, 2), alpha (n,)."""
    factor = torch.where(a > 0, 1.0, alpha.unsqueeze(-1))
    rows = [torch.stack([b[:, 0] * factor[:, i] * a[:, i], b[:, 1] * factor[:, i] * a[:, i]], -1) for i in (0, 1)]
    return torch.stack(rows, 1)


def merged(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """B LeakyReLU(A), (n, 2, 2)."""
    sigma = torch.stack([functional.leaky_relu(row, float(slope)) for row, slope in zip(a, alpha, strict=True)])
    return b.unsqueeze(-1) * sigma.unsqueeze(-2)


def lora(a: Tensor, b: Tensor) -> Tensor:
    """B A (Eq. 12), (n, 2, 2)."""
    return b.unsqueeze(-1) * a.unsqueeze(-2)


def inverse_leaky_relu(a: Tensor, alpha: Tensor) -> Tensor:
    """The A whose LeakyReLU is a, (n, 2)."""
    return torch.where(a > 0, a, a / alpha.unsqueeze(-1))


def check_cases(draws: int, seed: int) -> list[dict[str, Any]]:
    """Eq. 11 recomputed on random a, b and alpha in (0, 1), for each of its cases: the largest deviations.

    Returns:
        For each case: `transposed` and `as_printed`, the largest difference of an entry of the printed matrix from
        (B sigma(A))^T and from B sigma(A); `second_singular_value`, the largest; `lora_reaches_it` and
        `it_reaches_lora`, how far the one is from the other's matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(draws, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    alpha = torch.rand(draws, dtype=torch.float64, generator=generator).clamp(0.01, 0.99)
    update, text = merged(a, b, alpha), printed(a, b, alpha)
    with_sigma = lora(torch.where(a > 0, a, alpha.unsqueeze(-1) * a), b)
    with_inverse = merged(inverse_leaky_relu(a, alpha), b, alpha)
    which = (a[:, 0] <= 0).long() + 2 * (a[:, 1] <= 0).long()
    rows = []
    for case, name in enumerate(CASES):
        chosen = which == case
        rows.append(
            {
                "case": name,
                "draws": int(chosen.sum()),
                "transposed": _largest(text.mT - update, chosen),
                "as_printed": _largest(text - update, chosen),
                "second_singular_value": float(torch.linalg.svdvals(update)[chosen, 1].max()),
                "lora_reaches_it": _largest(with_sigma - update, chosen),
                "it_reaches_lora": _largest(with_inverse - lora(a, b), chosen),
            }
        )
    return rows


def check_reach(seeds: int) -> list[dict[str, Any]]:
    """How near B sigma(A) of rank 1 comes to the rank-one matrix [[1, -1], [1, -1]] / 2, for each part of sigma alone.

    Applied to the columns of the identity, B sigma(A x) gives the columns of B sigma(A): the search is that of
    Proposition 2.1. ReLU and sigmoid give A's entries one sign, so that one column at least is missed: 1/sqrt(2).
    """
    target = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64) / 2
    identity = torch.eye(2, dtype=torch.float64)
    rows = []
    for name, anl in REACHES.items():
        _, error = fit_best(identity, target.T, 1, anl, range(seeds))
        rows.append({"sigma": name, "distance": (2 * error) ** 0.5})  # a sum over two columns, not a mean
    return rows


def _largest(difference: Tensor, chosen: Tensor) -> float:
    return float(difference[chosen].abs().max())
