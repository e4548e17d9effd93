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
_NEEDS_DATA = "it needs training data"
_REFUSED = {
    "eva": f"{_NEEDS_DATA}: see start: eva of the method lora",
    "lora_ga": f"{_NEEDS_DATA}: see the method lora-ga",
    "pissa_niter": "PEFT draws this start anew when it loads the adapter: see the method pissa, which is exact",
}
"""How starts begin that PEFT makes by a second call, or otherwise when it loads them."""
_NO_OPTIONS = ("eva_config", "lora_ga_config", "lora_bias")
"""What PEFT reads with such a start alone; and what its merge into a quantised layer leaves the scale out of."""


@dataclass(frozen=True)
class LoraMethod(PeftMethod):
    """A method of PEFT's LoRA, whose configuration takes more than it computes."""

    def checked(self, options: Options) -> dict[str, Any]:
        checked = super().checked(options)
        start = options.get("init_lora_weights")
        for name, why in _REFUSED.items():
            if str(start).startswith(name):
                raise ValueError(f"init_lora_weights={start!r} is not allowed: {why}.")
        return checked


@dataclass(frozen=True)
class ProbedLoraMethod(ProbedMethod, LoraMethod):
    """LoRA, with the options that a probing pass answers."""


def lora_names(*fixed: str) -> list[str]:
    """The fields that `LoraConfig` adds to PEFT's base class, without the fixed ones and those that are no options."""
    return [name for name in added_fields(LoraConfig) if name not in (*fixed, *_NO_OPTIONS)]


LORA = ProbedLoraMethod(
    name="lora",
    config_class=LoraConfig,
    fields=LoraFields,
    names=[*lora_names(), *PROBED],
    recorded=LORA_RECORDED,
)
DORA = LoraMethod(
    name="dora",
    config_class=LoraConfig,
    fields=LoraFields,
    names=lora_names("use_dora"),
    recorded=LORA_RECORDED,
    fixed={"use_dora": True},
)
