"""Tensors in float64, a few rows at a time, where that can be computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FLOAT64_BYTES = 8
CHUNK_BYTES = 32 * 2**20
"""Inputs are widened to float64 in pieces of about this size."""

ROUNDING = 1e-6
"""A deviation that values have from rounding in float32 alone, by the root mean square of the largest of them."""

_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""NVIDIA's compute capabilities with float64 at half the rate of float32; elsewhere it is a 32nd or a 64th."""


def float64_device(device: torch.device) -> torch.device:
    """Where float64 can be computed: on the CPU for a device that has none (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def has_slow_float64(device: torch.device) -> bool:
    """Whether the device is a GPU that computes float64 at a small part of its float32 rate."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) not in _FAST_FLOAT64


def to_float64(values: Tensor) -> Tensor:
    """A tensor in float64, where that can be computed."""
    return values.to(float64_device(values.device)).double()


def rows_of_piece(width: int) -> int:
    """How many rows of this width are about `CHUNK_BYTES` in float64."""
    return max(1, CHUNK_BYTES // (FLOAT64_BYTES * width))


def row_pieces(rows: int, width: int) -> Iterator[slice]:
    """The rows of a (rows, width) matrix in pieces of about `CHUNK_BYTES` in float64."""
    step = rows_of_piece(width)
    return (slice(start, start + step) for start in range(0, rows, step))


def float64_pieces(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows of each matrix (n, width) at a time, in float64: about `CHUNK_BYTES` of the widest."""
    for rows in row_pieces(len(matrices[0]), max(values.shape[-1] for values in matrices)):
        yield tuple(to_float64(values[rows]) for values in matrices)
