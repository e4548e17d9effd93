"""A few rows at a time, in float64."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .moments import float64_device
from .products import CHUNK_BYTES, FLOAT64_BYTES


def wide_pieces(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each (n, width), in float64: about CHUNK_BYTES of the widest."""
    step = max(1, CHUNK_BYTES // (FLOAT64_BYTES * max(values.shape[-1] for values in rows)))
    for start in range(0, len(rows[0]), step):
        yield tuple(wide(values[start : start + step]) for values in rows)


def wide(values: Tensor) -> Tensor:
    """In float64, where that can be computed."""
    return values.to(float64_device(values.device)).double()
