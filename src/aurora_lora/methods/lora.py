"""LoRA and what `peft.LoraConfig` offers with it: the options are its fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import LoraConfig

from .base import PeftMethod, added_fields
from .options import MORE, TARGETS, check, defaults, dropout, fields, positive, rank
from .start import PROBED, ProbedMethod, probing

LORA_TABLE = {"r": rank(8), "lora_alpha": positive(8), "lora_dropout": dropout()}
"""The options that every result records. PEFT checks them when it builds the layers, in words that name no field."""
LORA_DEFAULTS = defaults(fields(LORA_TABLE))
_CHECKED = fields({**LORA_TABLE, **TARGETS, **MORE})
_OTHERWISE = {"eva": "see start: eva of the method lora", "lora_ga": "see the method lora-ga"}
"""Starts that PEFT makes by a second call, and leaves at its default without: how recipes name them."""
_UNREAD = {"eva_config": "start: eva has PEFT's defaults", "lora_ga_config": "the method lora-ga has stable_gamma"}
"""Fields that PEFT reads with such a start alone: what there is instead."""


def lora_config(**fixed: Any) -> Callable[..., Any]:
    """A maker of `LoraConfig`s with some fields fixed.

    The maker raises ValueError for a value that is not allowed, naming the option.
    """

    def make(**options: Any) -> Any:
        if (start := options.get("init_lora_weights")) in _OTHERWISE:
            raise ValueError(
                f"init_lora_weights={start!r} is not allowed: it needs training data: {_OTHERWISE[start]}."
            )
        if str(start).startswith("pissa_niter"):
            raise ValueError(
                f"init_lora_weights={start!r} is not allowed: PEFT draws this start anew when it loads the adapter, "
                "and changes W0 by it: see the method pissa, whose singular vectors are exact."
            )
        for name, instead in _UNREAD.items():
            if options.get(name) is not None:
                raise ValueError(f"{name} is not allowed, as nothing reads it: {instead}.")
        check({name: value for name, value in options.items() if name in _CHECKED.model_fields}, _CHECKED)
        try:
            return LoraConfig(**options, **fixed)
        except (AttributeError, KeyError, ImportError) as error:
            raise ValueError(f"PEFT's LoraConfig does not take these options: {error}") from error

    return make


def lora_names(*fixed: str) -> list[str]:
    """The fields that `LoraConfig` adds to PEFT's base class, without the fixed ones."""
    return [name for name in added_fields(LoraConfig) if name not in fixed]


LORA = ProbedMethod(
    name="lora",
    description="W0 x + s B A x (PEFT)",
    make_config=probing(lora_config()),
    names=[*lora_names(), *PROBED],
    defaults=LORA_DEFAULTS,
)
DORA = PeftMethod(
    name="dora",
    description="The rows of W0 + s B A at trained lengths (PEFT)",
    make_config=lora_config(use_dora=True),
    names=lora_names("use_dora"),
    defaults=LORA_DEFAULTS,
)
