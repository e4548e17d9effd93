"""Computing in the precision of the operands, whatever autocast and the process have chosen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..meanwhile import meanwhile


def without_autocast(operand: Tensor) -> AbstractContextManager[Any]:
    """While entered, products on the operand's device are in the precision of what is multiplied."""
    if operand.is_meta or not torch.is_autocast_enabled(operand.device.type):  # meta tensors have no autocast
        return nullcontext()
    return torch.autocast(operand.device.type, enabled=False)


def full_float32() -> AbstractContextManager[None]:
    """float32 products of a GPU in float32 (no TF32), whatever the process has chosen; that comes back.

    torch refuses to read one of its two switches after the other was set: from version 2.9 on, this one can always be.
    """
    matmul = torch.backends.cuda.matmul
    name, full = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    return meanwhile([matmul], **{name: full})
