"""Which base weights an update can be merged into."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import MergeError
from .peft_names import AuxiliaryTrainingWrapper, QuantizationBackend
from .tensors import is_float8


def is_recomputed(layer: nn.Module) -> bool:
    """Whether a layer computes its weight from other parameters, as weight normalisation does: what is written to the
    weight is lost then.

    By a parametrisation, or by a hook (`torch.nn.utils.weight_norm`, `spectral_norm`, `prune`).
    """
    if parametrize.is_parametrized(layer, "weight"):
        return True
    by_a_hook = isinstance(vars(layer).get("weight"), Tensor)  # an attribute, and no parameter or buffer
    return by_a_hook and any(name.startswith("weight_") for name in layer._parameters)


def check_takes_merge(base: nn.Module, backend: QuantizationBackend | None) -> None:
    """Raise what keeps an update from being merged into the weight of a base layer.

    Args:
        base: the layer.
        backend: PEFT's access to its weight if that is quantised.

    Raises:
        MergeError: the base layer computes its weight from others, as weight normalisation does, and as PEFT does
            for an output layer that is tied to embeddings of which single tokens are trained; or it is in float8.
        NotImplementedError: the base layer's quantisation cannot be undone and done again, or its weight is sharded.
    """
    if isinstance(base, AuxiliaryTrainingWrapper):
        raise MergeError(
            "The adapted layer is tied to embeddings of which single tokens are trained (trainable_token_indices), "
            "and what is merged into it would be lost: serve the adapter beside the base with "
            "aurora_lora.export_lora(model, folder), which is exact, or train without one of the two."
        )
    if is_recomputed(base):
        raise MergeError(
            f"The base weight of a {type(base).__name__} is computed from other parameters (weight "
            "normalisation, for example), and what is merged into it would be lost: take that off the base layer "
            "first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm), or "
            "leave such layers out by exclude_modules."
        )
    if backend is not None and not backend.supports_merge:
        raise NotImplementedError(
            f"A base layer quantised by {backend.backend_name} cannot be merged into: load the base model "
            "unquantised to merge, or serve the adapter beside it with aurora_lora.export_lora(model, folder)."
        )
    weight = getattr(base, "weight", None)
    if backend is None and hasattr(base, "weight_scale_inv"):
        raise MergeError(
            f"A {type(base).__name__} has its weight in float8 with a scale for each block, which cannot be merged "
            "into: load the base model dequantised to merge, or serve the adapter beside it with "
            "aurora_lora.export_lora(model, folder)."
        )
    if backend is None and (hasattr(base, "weight_scale") or hasattr(base, "online_quant")):
        raise MergeError(
            f"A {type(base).__name__} computes with a scaled or quantised form of its weight that PEFT has no access "
            "to, and what is merged into it would be lost: load the base model dequantised to merge, or serve the "
            "adapter beside it with aurora_lora.export_lora(model, folder)."
        )
    if backend is None and isinstance(weight, Tensor) and not (weight.is_floating_point() or weight.is_complex()):
        raise MergeError(
            f"The base weight of a {type(base).__name__} is stored in {weight.dtype}, which no update can be added to: "
            "load the base model dequantised to merge, or serve the adapter beside it with "
            "aurora_lora.export_lora(model, folder)."
        )
    if backend is None and isinstance(weight, Tensor) and is_float8(weight.dtype):
        raise MergeError(
            "The base weight is stored in float8, which is too coarse for a merge: merge before diffusers' "
            "enable_layerwise_casting, or serve the adapter beside the base with aurora_lora.export_lora."
        )
    if backend is None:
        base.state_dict()  # FSDP2's hook there puts a weight that is gathered for a forward pass back into shards
    if hasattr(getattr(base, "weight", None), "full_tensor"):
        raise NotImplementedError(
            "The base weight is sharded (a DTensor): save the adapter, load it over an unsharded base model, and "
            "merge there (docs/trainers.md)."
        )
