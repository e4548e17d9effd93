"""Optional packages: what installs the missing ones, and what some say on import that says nothing about a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .errors import UserError

Extra = Literal["train", "chat", "vision", "diffusion", "report", "quantized", "tensorboard", "trackio", "wandb"]


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


def drop_import_noise() -> None:
    """Silence what packages say of their missing kernels when they are imported, in a program that asks for it."""
    for logger in _noisy():
        logger.setLevel(logging.ERROR)


@contextmanager
def without_import_noise() -> Iterator[None]:
    """Silences it for the imports within."""
    levels = [(logger, logger.level) for logger in _noisy()]
    drop_import_noise()
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _noisy() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")]
