"""The calibrated matrix that travels with an adapter, and how it is known to belong to the adapter's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# An adapter may be saved, loaded or cast in any of these: each has its own hash, so that a cast's rounding is not taken
# for training.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fingerprint(weights: Sequence[Tensor]) -> Tensor:
    """(3,) int64 on the CPU: one hash of the values of `weights` for each of float32, bfloat16 and float16."""
    gathered = [whole(w) for w in weights]
    return torch.tensor([_hash(gathered, dtype) for dtype in _DTYPES], dtype=torch.int64, device="cpu")


def whole(weight: Tensor) -> Tensor:
    """The weight, gathered from all processes if it is sharded (a DTensor, as FSDP2 makes): call it on each of them."""
    gather = getattr(weight, "full_tensor", None)
    gathered: Tensor = weight if gather is None else gather()
    return gathered


def matches(stored: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `stored` is the fingerprint of `weights`, or of weights that were rounded to them by a cast.

    A hash of a lower precision counts only where every value is exact in that precision, as it is after a cast.
    """
    if any(w.is_meta for w in weights) or stored.is_meta:
        return False
    weights = [whole(w) for w in weights]
    for dtype, value in zip(_DTYPES, stored.tolist(), strict=True):
        exact = dtype is torch.float32 or all(torch.equal(w.to(dtype).to(w.dtype), w) for w in weights)
        if exact and _hash(weights, dtype) == value:
            return True
    return False


def _hash(weights: Sequence[Tensor], dtype: torch.dtype) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for weight in weights:
        # a copy: numpy() would pin the storage of a parameter that FSDP resizes
        copied = weight.detach().to("cpu", dtype, copy=True).contiguous()
        digest.update(copied.view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)
