"""A trained adapter as a LoRA file of diffusers: `pipe.load_lora_weights(folder)` reads it, without this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import files
from ..deploy import export_lora
from ..deploy.export import DIFFUSERS_WEIGHTS, check_replaceable, in_dtype, write_export
from ..forms import form_named
from ..methods.aurora import AuroraMethod
from ..tuner.peft_names import PEFT_PREFIX

if TYPE_CHECKING:
    from ..methods import Method


def no_lora(method: Method, form: str) -> str | None:
    """Why a form of a method is no LoRA of diffusers; None if it is one."""
    if not form_named(form).mergeable:
        return "the dynamic form is no linear map"
    if isinstance(method, AuroraMethod) or method.name == "lora":
        return None
    return f"diffusers loads LoRA, and {method.name} is none"


def write_lora(model: nn.Module, folder: Path, method: Method, form: str, dtype: str = "float32") -> None:
    """Write `pytorch_lora_weights.safetensors` for the U-Net.

    Args:
        model: the U-Net with the adapter of the method, AuroRA or PEFT's LoRA.
        folder: an earlier export there is replaced.
        method: of the adapter.
        form: the form to write.
        dtype: of the factors.

    Raises:
        FormError, NotCalibratedError, NotFiniteError: as `export_lora`.
        ValueError: what the adapter trains does not fit into such a file; an unknown dtype; a folder that holds
            anything but an earlier export.
    """
    if isinstance(method, AuroraMethod):
        export_lora(model, folder, form, format="diffusers", dtype=dtype)
        return
    weights = in_dtype(_lora_state(model), dtype)
    check_replaceable(folder)
    with files.new_folder(folder) as partial:
        write_export(partial / DIFFUSERS_WEIGHTS, weights)


@torch.no_grad()
def _lora_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's LoRA under the names of diffusers; the scaling goes into B, as such files have no alpha."""
    weights: dict[str, torch.Tensor] = {}
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not isinstance(layer.lora_A, nn.ModuleDict):
            continue
        adapted: Any = layer
        (name,) = adapted.active_adapters
        if adapted.lora_variant or getattr(adapted.lora_B[name], "bias", None) is not None:
            raise ValueError("a variant of LoRA, or trained biases, do not fit into a LoRA file of diffusers")
        lead = "unet." + path.removeprefix(PEFT_PREFIX)
        weights[f"{lead}.lora_A.weight"] = adapted.lora_A[name].weight.detach()
        weights[f"{lead}.lora_B.weight"] = adapted.lora_B[name].weight.detach() * adapted.scaling[name]
    return weights
