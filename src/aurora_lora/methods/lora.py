"""LoRA and what `peft.LoraConfig` offers with it: the options are its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from .base import PeftMethod
from .options import MORE, TARGETS, check, dropout, fields, positive, rank
from .start import probing, probing_names

LORA_TABLE = {"r": rank(8), "lora_alpha": positive(8), "lora_dropout": dropout()}
"""The options that every result records. PEFT checks them when it builds the layers, in words that name no field."""


_CHECKED = fields({**LORA_TABLE, **TARGETS, **MORE})


def lora_defaults() -> dict[str, Any]:
    """The defaults of `LORA_TABLE`."""
    return {name: default for name, (_, default) in LORA_TABLE.items()}


def lora_config(**fixed: Any) -> Callable[..., Any]:
    """A maker of `LoraConfig`s with some fields fixed.

    The maker raises ValueError for a value that is not allowed, naming the option.
    """

    def make(**options: Any) -> Any:
        from peft import LoraConfig

        check({name: value for name, value in options.items() if name in _CHECKED.model_fields}, _CHECKED)
        try:
            return LoraConfig(**options, **fixed)
        except (AttributeError, KeyError, ImportError) as error:
            raise ValueError(f"PEFT's LoraConfig does not take these options: {error}") from error

    return make


def lora_option_names(*fixed: str) -> Callable[[], Iterable[str]]:
    """The fields that `LoraConfig` adds to PEFT's base class, without the fixed ones."""

    def names() -> Iterable[str]:
        from peft import LoraConfig
        from peft.config import PeftConfig

        inherited = {field.name for field in dataclasses.fields(PeftConfig)}
        own = [field.name for field in dataclasses.fields(LoraConfig) if field.init and field.name not in inherited]
        return [name for name in own if name not in fixed]

    return names


LORA = PeftMethod(
    name="lora",
    description="W0 x + s B A x (PEFT)",
    make_config=probing(lora_config()),
    option_names=probing_names(lora_option_names()),
    defaults=lora_defaults,
)
DORA = PeftMethod(
    name="dora",
    description="The rows of W0 + s B A at trained lengths (PEFT)",
    make_config=lora_config(use_dora=True),
    option_names=lora_option_names("use_dora"),
    defaults=lora_defaults,
)
