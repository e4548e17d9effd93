"""X^T X, summed to float64 accuracy: in float64 itself, or where that is slow, in exact float32 products.

One float32 product for each chunk is not enough: with the default ridge, on inputs that are ill-conditioned as hidden
states are, the calibrated matrix is then further than 1e-5 from the float64 one (tests/deploy/test_products.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.autocast import full_float32, without_autocast

SLICE_BITS, SLICES, SLICED_ROWS = 7, 4, 1024
"""Integers of up to 2^7 in magnitude: the sum of 1,024 products of two is at most 2^24, and so exact in float32."""
LEAST_RIDGE_OF_SLICES = 1e-4
"""31 bits of each input keep the calibrated matrix within 1e-5 from here on; a smaller ridge needs all of float64."""


def add_gram(total: Tensor, x: Tensor, sliced: bool) -> None:
    """Add x^T x to the lower triangle of `total`; what lies above it is not kept up: see `mirror`.

    Args:
        total: (d, d), float64.
        x: (n, d), on the device of `total`: float64, or, sliced, a narrower one.
        sliced: take the products in float32, exactly: several times faster where float64 is slow.
    """
    if sliced:
        for start in range(0, len(x), SLICED_ROWS):
            _add_sliced(total, x[start : start + SLICED_ROWS].float())
    else:
        _add_float64(total, x)


def _add_float64(total: Tensor, x: Tensor) -> None:
    """By strips of columns, from the diagonal down: little more than half of the whole product."""
    d = x.shape[1]
    width = max(192, -(-d // 8))
    for start in range(0, d, width):
        strip = slice(start, start + width)
        total[start:, strip].addmm_(x[:, start:].T, x[:, strip])


def _add_sliced(total: Tensor, x: Tensor) -> None:
    """x as a sum of slices of few bits, scaled by column; products of slices are sums of integers up to 2^24.

    x[:, i] = 2^e_i (s_0 2^-7 + s_1 2^-15 + s_2 2^-23 + s_3 2^-31), each s an integer of at most 2^7 in magnitude.
    Products of two slices that together lie below the last one are left out.
    """
    _, exponents = torch.frexp(x.abs().amax(0))
    rest = torch.ldexp(torch.ldexp(x, -(exponents // 2)), exponents // 2 - exponents + SLICE_BITS)  # 2^-e may overflow
    slices = []
    for _ in range(SLICES):
        slices.append(rest.round())
        rest = (rest - slices[-1]) * 2.0 ** (SLICE_BITS + 1)
    half = torch.zeros_like(total)  # and half^T are the product
    with full_float32(), without_autocast(total):
        for i, one in enumerate(slices):
            for j, other in enumerate(slices[i : SLICES + 1 - i], i):
                weight = 2.0 ** (-2 * SLICE_BITS - (SLICE_BITS + 1) * (i + j))
                half.add_(one.T @ other, alpha=weight / 2 if i == j else weight)
    scale = torch.exp2(exponents.double())
    half.mul_(scale[:, None]).mul_(scale)
    total.add_(half).add_(half.T)


def mirror(total: Tensor) -> None:
    """Make `total` (d, d) symmetric from its lower triangle."""
    d = len(total)
    width = max(192, -(-d // 8))
    for start in range(0, d, width):
        block = total[start : start + width, start : start + width]
        block.copy_(block.tril() + block.tril(-1).T)
        total[start : start + width, start + width :] = total[start + width :, start : start + width].T
