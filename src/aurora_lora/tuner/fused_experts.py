"""Mixtures of experts: one module has all their weights, and PEFT's LoRA takes names of modules for them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from peft import LoraConfig
from torch import nn

from .peft_names import convert_peft_config_for_transformers


def fused_experts(target_modules: Any, model: nn.Module) -> list[str]:
    """The parameters that PEFT's LoRA adapts in place of modules of these names; none in models without such.

    Args:
        target_modules: as of a `LoraConfig`.
        model: the plain model.

    Raises:
        ValueError: names of which PEFT's LoRA wants others as well.
    """
    if target_modules is None:
        return []
    read = LoraConfig(target_modules=copy.copy(target_modules))
    convert_peft_config_for_transformers(read, model, None)
    return sorted(read.target_parameters or ())


def warn_of_fused_experts(target_modules: Any, model: nn.Module) -> None:
    """Warn where LoRA would adapt experts, and AuroRA adapts modules alone.

    A router's weight (`gate.weight`), which LoRA adapts as a parameter too, is a module's: naming it is an error.
    """
    try:
        found = [name for name in fused_experts(target_modules, model) if "." not in name]
    except ValueError as error:  # some of the layers that are fused are named, and not all
        warnings.warn(
            f"PEFT's LoRA refuses these target_modules ({str(error).rstrip('.')}). Fused experts are no modules: "
            "AuroRA leaves them as they are.",
            stacklevel=4,
        )
        return
    if found:
        warnings.warn(
            f"LoRA with these target_modules adapts the fused weights of the experts ({', '.join(found)}). They are no "
            "modules: AuroRA leaves them as they are.",
            stacklevel=4,
        )
