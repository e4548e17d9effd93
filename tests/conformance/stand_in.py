"""What PEFT's tests find under the name `LoraConfig`: it takes LoRA's arguments and makes an `AuroraConfig`.

So the tests ask of AuroRA what they ask of LoRA, with LoRA's own settings.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest
from peft import LoraConfig as PeftLoraConfig

from aurora_lora import AuroraConfig

NAMES = {"lora_alpha": "alpha", "lora_dropout": "dropout", "init_lora_weights": "init_weights"}
OURS = {field.name for field in fields(AuroraConfig)}
DEFAULTS = {
    field.name: field.default_factory() if field.default_factory is not MISSING else field.default
    for field in fields(PeftLoraConfig)
}


class UntranslatableError(Exception):
    """A setting that LoRA has and AuroRA has not."""


def translate(**kwargs: Any) -> dict[str, Any]:
    """The arguments of `AuroraConfig` for those of `LoraConfig`; r and alpha default to LoRA's, the form to static,
    the skip to none: PEFT's tests train with steps that throw a nearly linear sigma far out.

    Arguments that `AuroraConfig` has and `LoraConfig` has not are passed on.

    Raises:
        UntranslatableError: an option, or a value of one, that AuroRA does not have.
    """
    ours: dict[str, Any] = {"r": DEFAULTS["r"], "alpha": DEFAULTS["lora_alpha"], "skip": False}
    if not {"train_form", "eval_form", "calibrated"} & kwargs.keys():
        ours["train_form"] = "static"
    for name, value in kwargs.items():
        if name == "init_lora_weights" and not isinstance(value, bool):
            raise UntranslatableError(f"init_lora_weights={value!r}")
        if name == "target_parameters" and value:
            raise UntranslatableError("target_parameters")
        if name == "bias" and value == "lora_only":
            ours[name] = "aurora_only"
        elif NAMES.get(name, name) in OURS:
            ours[NAMES.get(name, name)] = value
        elif name not in DEFAULTS:
            raise TypeError(f"neither LoraConfig nor AuroraConfig has an argument {name!r}")
        elif value != DEFAULTS[name]:
            raise UntranslatableError(name)
    return ours


class Unavailable:
    """In place of a config, where a test asks for an option of LoRA while pytest collects."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Meta(type):
    collecting = False

    def __repr__(cls) -> str:
        return "LoraConfig"

    def __getattr__(cls, name: str) -> Any:
        return getattr(AuroraConfig, name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, AuroraConfig)

    def __call__(cls, **kwargs: Any) -> Any:
        try:
            return AuroraConfig(**translate(**kwargs))
        except UntranslatableError as error:
            if cls.collecting:
                return Unavailable(str(error))
            pytest.skip(f"AuroRA has no {error}")


class LoraConfig(metaclass=_Meta):
    """Makes an `AuroraConfig` from LoRA's arguments; `isinstance(config, LoraConfig)` holds for it."""
