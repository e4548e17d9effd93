"""Which layers an adapter can be put on, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .conv import AuroraConv1d, AuroraConv2d, AuroraConv3d
from .embedding import AuroraEmbedding
from .layer import AuroraLayer
from .linear import AuroraLinear
from .peft_names import resolve_quantization_backend
from .tensors import is_tensor_parallel

LAYERS: dict[type[nn.Module], type[AuroraLayer]] = {
    nn.Linear: AuroraLinear,
    Conv1D: AuroraLinear,
    nn.Conv1d: AuroraConv1d,
    nn.Conv2d: AuroraConv2d,
    nn.Conv3d: AuroraConv3d,
    nn.Embedding: AuroraEmbedding,
}

BYPASSED_IN_MAMBA = ("out_proj", "conv1d")
"""Layers whose weight the kernels of Mamba read without calling the layer, so that an adapter would do nothing."""
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")


def is_bypassed(model: Any, name: str) -> bool:
    """Whether a model never calls its layers of this name, so that an adapter there would do nothing."""
    return model_type(model) in MAMBA and name in BYPASSED_IN_MAMBA


def model_type(model: Any) -> str | None:
    """What Transformers calls the architecture; None of a model that is not one of its."""
    return getattr(getattr(model, "config", None), "model_type", None)


def layer_class(base_layer: nn.Module, key: str, quantization: Mapping[str, Any]) -> type[AuroraLayer]:
    """The class of AuroRA layer for a layer of the base model.

    Args:
        base_layer: of the model, without an adapter of any method.
        key: its path, for errors.
        quantization: what PEFT says of the model's quantisation.

    Raises:
        ValueError: no adapter can be put on it, or one there would do nothing.
    """
    if isinstance(base_layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"Target module {key!r} belongs to a torch.nn.MultiheadAttention, which reads its weight without "
            "calling it: an adapter there would do nothing. Leave it out with exclude_modules."
        )
    if is_tensor_parallel(base_layer):
        raise ValueError(
            f"Target module {key!r} is split over processes, and tensor parallelism is not supported: load the "
            "base without tp_plan / tp_size. For FSDP2 over a named mesh, call get_peft_model before fully_shard."
        )
    for kind, layer_cls in LAYERS.items():
        if isinstance(base_layer, kind):
            return layer_cls
    if resolve_quantization_backend(base_layer, **quantization) is not None:
        return AuroraLinear
    raise ValueError(
        f"Target module {key!r} is a {type(base_layer).__name__}, which AuroRA does not support: it adapts "
        "torch.nn.Linear (also quantised), Conv1d, Conv2d, Conv3d, Embedding and transformers' Conv1D. Leave "
        "it out with exclude_modules."
    )
