"""LoRA and what `peft.LoraConfig` offers with it: the options are its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from .base import PeftMethod
from .options import LoraFields, Options, added_fields
from .start import PROBED, ProbedMethod

LORA_RECORDED: Options = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""The options that every result records, with their defaults."""
_TRAINING_DATA = "is not allowed: it needs training data: see"
_REFUSED = {
    "eva": f"{_TRAINING_DATA} start: eva of the method lora",
    "lora_ga": f"{_TRAINING_DATA} the method lora-ga",
    "pissa_niter": (
        "is not allowed: PEFT draws this start anew when it loads the adapter, and changes W0 by it: see the method "
        "pissa, whose singular vectors are exact"
    ),
}
"""How starts begin that PEFT makes by a second call, or otherwise when it loads them: what there is instead."""
_UNREAD = {"eva_config": "start: eva has PEFT's defaults", "lora_ga_config": "the method lora-ga has stable_gamma"}
"""Fields that PEFT reads with such a start alone: what there is instead."""


@dataclass(frozen=True)
class LoraMethod(PeftMethod):
    """A method of PEFT's LoRA, whose configuration takes more than it computes."""

    def checked(self, options: Options) -> dict[str, Any]:
        checked = super().checked(options)
        start = options.get("init_lora_weights")
        for name, why in _REFUSED.items():
            if str(start).startswith(name):
                raise ValueError(f"init_lora_weights={start!r} {why}.")
        for name, instead in _UNREAD.items():
            if options.get(name) is not None:
                raise ValueError(f"{name} is not allowed, as nothing reads it: {instead}.")
        return checked


@dataclass(frozen=True)
class ProbedLoraMethod(ProbedMethod, LoraMethod):
    """LoRA, with the options that a probing pass answers."""


def lora_names(*fixed: str) -> list[str]:
    """The fields that `LoraConfig` adds to PEFT's base class, without the fixed ones."""
    return [name for name in added_fields(LoraConfig) if name not in fixed]


LORA = ProbedLoraMethod(
    name="lora",
    description="W0 x + s B A x (PEFT)",
    config_class=LoraConfig,
    fields=LoraFields,
    names=[*lora_names(), *PROBED],
    recorded=LORA_RECORDED,
)
DORA = LoraMethod(
    name="dora",
    description="The rows of W0 + s B A at trained lengths (PEFT)",
    config_class=LoraConfig,
    fields=LoraFields,
    names=lora_names("use_dora"),
    recorded=LORA_RECORDED,
    fixed={"use_dora": True},
)
