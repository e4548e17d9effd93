"""What is not finite is refused where it would be written or taken for a result."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .errors import DIVERGED, NotFiniteError, UserError


def check_finite(named: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Look for NaN and infinity in tensors, by their names; those on meta are passed over.

    Args:
        named: name and tensor.
        what: what they are of: the message begins with it.

    Raises:
        NotFiniteError: the first that holds such a value.
    """
    for name, tensor in named:
        if not is_finite(tensor):
            raise NotFiniteError(f"{what}: {name} holds values that are not finite (NaN or infinity)")


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite, without a mask as large as the tensor."""
    if tensor.is_meta or tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    values = tensor.detach()
    ends = torch.aminmax(values if values.element_size() > 1 else values.float())  # both are NaN where there is one
    return bool(torch.isfinite(torch.stack(tuple(ends))).all())


def nan_as_infinite(loss: float) -> float:
    """A loss as a sort key, by which NaN is with the worst: it compares with nothing, and leaves a list unsorted."""
    return math.inf if math.isnan(loss) else loss


def check_loss(loss: float, step: int) -> None:
    """Raise a UserError for a loss of a training that is no number any more."""
    if not math.isfinite(loss):
        raise UserError(f"{DIVERGED}: the loss is {loss} at step {step}; lower training.learning_rate")
