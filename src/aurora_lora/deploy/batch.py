"""What a batch is: what it may consist of, a copy of it, and the memory that it takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label that no loss counts, and Transformers does not count as an item of the batch."""
Batch = Mapping[str, Any] | Tensor | tuple[Any, ...] | list[Any]


def copied(batch: Any, device: torch.device | None = None) -> Any:
    """A batch with a copy of each tensor in its dicts, lists and tuples: what is done to one does not reach the other.

    Args:
        batch: what is none of these is the same in the copy.
        device: that of the copies; None is where each tensor is.
    """
    if isinstance(batch, Tensor):
        alone = batch.detach().requires_grad_(batch.requires_grad)
        return alone.to(device or batch.device, copy=True)
    if isinstance(batch, MutableMapping):
        twin = copy(batch)
        for key, value in batch.items():
            twin[key] = copied(value, device)
        return twin
    if isinstance(batch, (tuple, list)):
        values = [copied(value, device) for value in batch]
        return batch._make(values) if hasattr(batch, "_make") else type(batch)(values)  # a named tuple has names
    return batch


def bytes_of(batch: Any) -> int:
    """Memory of a batch; more than any machine has where there is something that cannot be counted."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, MutableMapping):
        return sum(map(bytes_of, batch.values()))
    if isinstance(batch, (tuple, list)):
        return sum(map(bytes_of, batch))
    countable = batch is None or isinstance(batch, (bool, int, float, str))
    return sys.getsizeof(batch) if countable else sys.maxsize
