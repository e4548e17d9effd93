"""Optional packages: what installs the missing ones, and what some say on import that says nothing about a run."""

import logging
import re
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


NOISE = {
    "torchao": r"Failed to load .*[/\\]_C\w*\.[^/\\]*: Could not load this library",  # kernels for other devices
    "torch.utils._pytree": (
        r"<enum '(KernelPreference|ScaleCalculationMode)'> is an Enum subclass .*register_constant\(\)"
    ),
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community: ",
}
"""Patterns of messages when PEFT or diffusers import the package, by the logger that they come from."""


def drop_import_noise() -> None:
    """Drop the messages of `NOISE` from here on, in a program that asks for it: the command and the tests."""
    for logger in NOISE:
        logging.getLogger(logger).addFilter(_is_no_noise)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return re.match(NOISE[record.name], record.getMessage(), re.DOTALL) is None
