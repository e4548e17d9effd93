"""LoRA, PEFT's own: the options are the fields of `peft.LoraConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from .base import PeftMethod


def _config(**options: Any) -> Any:
    from peft import LoraConfig

    # PEFT checks these when it builds the layers, in words that do not name the field
    r, alpha, dropout = (options.get(name, default) for name, default in _defaults().items())
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise ValueError(f"r={r!r} is not allowed: it must be a whole number of at least 1.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        raise ValueError(f"lora_alpha={alpha!r} is not allowed: it must be a number above 0.")
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout={dropout!r} is not allowed: it must be a number in [0, 1).")
    return LoraConfig(**options)


def _option_names() -> Iterable[str]:
    from peft import LoraConfig
    from peft.config import PeftConfig

    inherited = {field.name for field in fields(PeftConfig)}
    return [field.name for field in fields(LoraConfig) if field.init and field.name not in inherited]


def _defaults() -> dict[str, Any]:
    return {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


LORA = PeftMethod(
    name="lora",
    description="LoRA: W0 x + s B A x, as PEFT implements it",
    make_config=_config,
    option_names=_option_names,
    defaults=_defaults,
)
