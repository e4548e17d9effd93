"""A trained adapter as a LoRA file of diffusers: `pipe.load_lora_weights(folder)` reads it, without this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import get_peft_model_state_dict
from torch import nn

from ..deploy import export_lora
from ..deploy.export import check_replaceable, in_dtype, of_one_rank, write_component
from ..forms import FormName, form_named
from ..methods.aurora import AuroraMethod
from ..tuner.adapters import plain_path

if TYPE_CHECKING:
    from ..methods import Method


def no_lora(method: Method, form: str) -> str | None:
    """Why a form of a method is no LoRA of diffusers; None if it is one."""
    if not form_named(form).mergeable:
        return "the dynamic form is no linear map"
    if not isinstance(method, AuroraMethod) and method.name != "lora":
        return f"diffusers loads LoRA, and {method.name} is none"
    options = method.options
    for name in ("modules_to_save", "trainable_token_indices"):
        if options.get(name):
            return f"a LoRA file of diffusers has no place for what {name} trains"
    if method.base_use == "trained":
        return f"a LoRA file of diffusers has no place for the biases that bias={options['bias']!r} trains"
    if method.base_use == "start":
        kasa = options.get("kasa_config") is not None
        start = "kasa_config" if kasa else f"init_lora_weights={options['init_lora_weights']!r}"
        return f"a LoRA file of diffusers is for the base as it is, and {start} may change it"
    return None


def write_lora(model: nn.Module, folder: Path, method: Method, form: str, dtype: str = "float32") -> None:
    """Write `pytorch_lora_weights.safetensors` for the U-Net.

    Args:
        model: the U-Net with the adapter of the method, AuroRA or PEFT's LoRA.
        folder: an earlier export there is replaced; what it holds of other components of the pipeline stays.
        method: of the adapter.
        form: the form to write.
        dtype: of the factors.

    Raises:
        FormError, NotCalibratedError, NotFiniteError: as `export_lora`.
        ValueError: the adapter has or trains more than LoRA's A and B, or is a variant of LoRA; an unknown dtype; a
            folder that holds anything but an earlier export.
    """
    if isinstance(method, AuroraMethod):
        export_lora(model, folder, cast("FormName", form), format="diffusers", dtype=dtype)
        return
    weights = in_dtype(_lora_state(model), dtype)
    check_replaceable(folder)
    write_component(folder, "unet", weights)


@torch.no_grad()
def _lora_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's LoRA under the names in the U-Net; the scaling goes into B, as such files have no alpha.

    Raises:
        ValueError: as `write_lora`.
    """
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not isinstance(layer.lora_A, nn.ModuleDict):
            continue
        adapted: Any = layer
        (name,) = adapted.active_adapters
        if name not in adapted.lora_A:
            continue  # an embedding, whose factors have other names
        if adapted.lora_variant or getattr(adapted.lora_B[name], "bias", None) is not None:
            raise ValueError("a variant of LoRA, or trained biases, do not fit into a LoRA file of diffusers")
        A, B = adapted.lora_A[name].weight, adapted.lora_B[name].weight
        factors[plain_path(model, path)] = A, B * adapted.scaling[name]
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    for other in (*held, *trained):
        if ".lora_A." not in other and ".lora_B." not in other:
            raise ValueError(f"a LoRA file of diffusers holds LoRA's A and B only, and the adapter has {other} too")
    return {
        f"{path}.{name}.weight": factor
        for path, pair in of_one_rank(factors).items()
        for name, factor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
