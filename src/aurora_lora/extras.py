"""What to install where an optional package is missing: the core has none of those that recipes and figures need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .errors import UserError

Extra = Literal[
    "train", "chat", "vision", "diffusion", "slurm", "report", "quantized", "tensorboard", "trackio", "wandb"
]


@contextmanager
def extra(name: Extra) -> Iterator[None]:
    """Wraps the import of packages that an extra installs.

    Raises:
        UserError: one of them is missing; names the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(missing(error, name)) from error


def missing(error: ImportError, name: Extra) -> str:
    """What is missing and what installs it, for people."""
    package = "" if error.name is None else f" {error.name.partition('.')[0]!r}"
    return f"the Python package{package} is missing: pip install 'aurora-lora[{name}]' installs it"
