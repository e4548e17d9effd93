"""Computing in the precision of the operands, whatever autocast and the process have chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(operand: Tensor) -> AbstractContextManager[Any]:
    """While entered, products on the operand's device are in the precision of what is multiplied."""
    if operand.is_meta or not torch.is_autocast_enabled(operand.device.type):  # meta tensors have no autocast
        return nullcontext()
    return torch.autocast(operand.device.type, enabled=False)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 products in float32 (no TF32 on a GPU, no bfloat16 on a CPU), whatever the process has chosen; that comes
    back.

    torch refuses to read one of its two switches after the other was set: from version 2.9 on, `fp32_precision` can
    always be.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    products, of_all = (backends.cuda.matmul, backends.mkldnn.matmul), backends.fp32_precision
    earlier = [matmul.fp32_precision for matmul in products]
    try:
        for matmul in products:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, precision in zip(products, earlier, strict=True):
            matmul.fp32_precision = "none" if precision == of_all else precision  # none: that of all, now and later
