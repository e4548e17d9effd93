"""What a value, or a tensor, may be, and the error that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DIVERGED, NotFiniteError, UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST = 1e9
"""A number of more is none that float32 computes well with."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number: no bool, nor an integer that no float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_int(value: Any, least: int, most: float = math.inf) -> bool:
    """Whether a value is a whole number from `least` to `most`, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_grid(ends: Any, intervals: int) -> bool:
    """Whether two numbers span a grid whose points float32 can tell apart."""
    if not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(is_number, ends)) and ends[0] < ends[1]):
        return False
    if max(map(abs, ends)) > MOST:
        return False
    points = np.linspace(ends[0], ends[1], intervals + 1, dtype=np.float32)
    return bool(np.all(np.diff(points) >= 1e-6))


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the field, the value and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{name}={short(value)} is not allowed: it must be {allowed}.")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the value is one of those allowed."""
    # `1 == True` must not let an integer pass for a switch, nor a list raise in `in`
    is_allowed = any(type(value) is type(option) and value == option for option in allowed)
    require(is_allowed, name, value, f"one of {', '.join(map(repr, allowed))}")


def short(value: Any) -> str:
    """A value for an error message: cut where it is long."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        return f"<{type(value).__name__}>"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


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
    import torch  # which listing values needs not

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
