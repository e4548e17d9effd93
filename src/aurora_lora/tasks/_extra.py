"""The one error for a missing `[train]` extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from aurora_lora.errors import UserError


@contextmanager
def train_extra() -> Iterator[None]:
    """Wraps the import of a package of the `[train]` extra: the core install has none of them.

    Raises:
        UserError: the package is missing; names the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"the Python package {error.name!r} is missing: pip install 'aurora-lora[train]' installs it"
        ) from error
