"""Adding adapters up to one: `add_weighted_adapter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.config import PeftConfig
from torch import Tensor, nn

from .adapters import no_adapter
from .layer import AuroraLayer
from .peft_names import ModulesToSaveWrapper, TrainableTokensLayer

OF_OTHER_TYPES = {
    "svd_rank": None,
    "svd_clamp": None,
    "svd_full_matrices": True,
    "svd_driver": None,
    "density": None,
    "majority_sign_method": "total",
}
"""What LoRA's `add_weighted_adapter` takes for its other combination types, with its defaults."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what says how to combine otherwise than by "cat".

    Raises:
        ValueError: an option of LoRA's other combination types.
        TypeError: one that LoRA does not have, either.
    """
    for name, value in options.items():
        if name not in OF_OTHER_TYPES:
            raise TypeError(f"add_weighted_adapter() got an unexpected keyword argument {name!r}")
        if value != OF_OTHER_TYPES[name]:
            raise ValueError(f"{name}={value!r} is not allowed: AuroRA adapters combine by 'cat'.")


def check_combination(
    configs: Mapping[str, PeftConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> None:
    """Refuse what cannot be combined.

    Raises:
        ValueError: an unknown or repeated adapter name, another combination type than "cat", lengths that differ, or
            adapters with trained biases or tokens.
    """
    if combination_type != "cat":
        raise ValueError(f"combination_type={combination_type!r} is not allowed: AuroRA adapters combine by 'cat'.")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"adapters and weights must be of one length, not {len(adapters)} and {len(weights)}.")
    for name in adapters:
        if name not in configs:
            raise no_adapter(name, configs)
    if adapter_name in configs:
        raise ValueError(f"Adapter {adapter_name!r} exists already.")
    for field, none in (("bias", ("none",)), ("trainable_token_indices", (None, [], {}))):
        if any(getattr(configs[name], field) not in none for name in adapters):
            raise ValueError(f"add_weighted_adapter cannot combine adapters with {field}.")


def saved_modules(model: nn.Module, adapters: Sequence[str]) -> dict[str, str]:
    """The modules that the adapters train whole (`modules_to_save`), each with the one adapter that does.

    Raises:
        ValueError: two of the adapters train the same module; such weights are no updates that could be added.
    """
    found: dict[str, str] = {}
    shared = 0
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            owners = [name for name in dict.fromkeys(adapters) if name in module.modules_to_save]
            shared += len(owners) > 1
            if owners:
                found[path] = owners[0]
    if shared:
        raise ValueError(
            "Cannot add weighted adapters if they target the same module with modules_to_save, but found "
            f"{shared} such instance(s)."
        )
    return found


def copy_saved_modules(model: nn.Module, owners: Mapping[str, str], adapter_name: str) -> None:
    """Give the new adapter the trained modules of its parts."""
    for path, owner in owners.items():
        saved: nn.ModuleDict = model.get_submodule(path).modules_to_save  # type: ignore[assignment]
        saved[adapter_name].load_state_dict(saved[owner].state_dict())


def copy_tokens(model: nn.Module, source: str, adapter_name: str) -> None:
    """Give an adapter the trained rows of another's tokens (`trainable_token_indices`), in their dtype."""
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer) and source in module.trainable_tokens_delta:
            rows: Any = module.trainable_tokens_delta
            copied = rows[source].detach().clone()
            rows[adapter_name] = nn.Parameter(copied, requires_grad=rows[adapter_name].requires_grad)


@torch.no_grad()
def concatenate(layer: AuroraLayer, adapter_name: str, parts: Sequence[tuple[float, Tensor, Tensor]]) -> None:
    """Fill A (r, d_in) and B (d_out, r) of a plain LoRA with those of its parts, one below or beside the other.

    Args:
        layer: where the adapter is; its rank r is at least that of all parts together.
        adapter_name: the plain LoRA.
        parts: (weight, lora_A, lora_B) of each.
    """
    A, B = layer.aurora_A[adapter_name], layer.aurora_B[adapter_name]
    A.zero_()
    B.zero_()
    start = 0
    for weight, lora_A, lora_B in parts:
        end = start + len(lora_A)
        A[start:end] = lora_A
        B[:, start:end] = weight * lora_B
        start = end
