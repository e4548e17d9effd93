"""A method is put on a pretrained model, and what a user can be wrong about there is said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UserError, one_line
from .base import Method, TaskType
from .targets import check_modules

if TYPE_CHECKING:
    from torch import nn


def apply_method(method: Method, base: Any, task_type: TaskType, kept: Path | None = None) -> nn.Module:
    """The method on a pretrained model.

    Args:
        method: bound to its options.
        base: the pretrained model.
        task_type: of PEFT.
        kept: see `Method.apply`.

    Raises:
        UserError: the method does not fit the model, or the memory.
    """
    with plain_method_errors():
        check_modules(base, method.options)
        return method.apply(base, task_type, kept)


@contextlib.contextmanager
def plain_method_errors() -> Iterator[None]:
    """What a method says of the model, the memory or a file of the run, as a UserError."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"{one_line(error)} Remove it to begin the run again") from error
    except ValueError as error:
        raise UserError(f"method: {one_line(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"method: it does not fit the memory: {str(error).splitlines()[0]}") from error
