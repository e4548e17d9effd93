"""Computing in the precision of the operands, also within a region of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(operand: Tensor) -> AbstractContextManager[Any]:
    """While entered, products on the operand's device are in the precision of what is multiplied."""
    if operand.is_meta or not torch.is_autocast_enabled(operand.device.type):  # meta tensors have no autocast
        return nullcontext()
    return torch.autocast(operand.device.type, enabled=False)
