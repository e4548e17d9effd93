"""Tensors as an adapter wants them: ordinary ones, also in `torch.inference_mode()`, and whole, also where sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made meanwhile are ordinary ones, without gradients: training and `load_state_dict` take them later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def gathered(weight: Tensor) -> Tensor:
    """The weight, gathered from all processes if it is sharded (a DTensor, as FSDP2 makes): call it on each of them."""
    gather = getattr(weight, "full_tensor", None)
    full: Tensor = weight if gather is None else gather()
    return full


def changes(x: Tensor) -> int:
    """How often a tensor was changed in place; -1 for one that was made in inference mode, which keeps no count."""
    return -1 if x.is_inference() else x._version
