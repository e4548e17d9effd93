"""What torchao and bitsandbytes say when PEFT or diffusers import them, and that says nothing about a run.

Only these messages are dropped, and only by a program that asks for it: the command and the tests.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

NOISE = {
    "torchao": r"Failed to load .*[/\\]_C\w*\.[^/\\]*: Could not load this library",  # kernels for other devices
    "torch.utils._pytree": (
        r"<enum '(KernelPreference|ScaleCalculationMode)'> is an Enum subclass .*register_constant\(\)"
    ),
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community: ",
}
"""Patterns of the messages, by the logger that they come from."""


@dataclass(frozen=True)
class _Without:
    pattern: str

    def filter(self, record: logging.LogRecord) -> bool:
        return re.match(self.pattern, record.getMessage(), re.DOTALL) is None


def drop_import_noise() -> None:
    """Drop the messages of `NOISE` from here on. Safe to call again."""
    for logger, pattern in NOISE.items():
        logging.getLogger(logger).addFilter(_Without(pattern))
