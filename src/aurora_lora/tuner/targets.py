"""Which modules a configuration names, as PEFT reads it, and which layers an adapter can be put on, and as what."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .conv import AuroraConv1d, AuroraConv2d, AuroraConv3d
from .embedding import AuroraEmbedding
from .layer import AuroraLayer, AuroraLinear
from .peft_names import check_target_module_exists, resolve_quantization_backend

LAYERS: dict[type[nn.Module], type[AuroraLayer]] = {
    nn.Linear: AuroraLinear,
    Conv1D: AuroraLinear,
    nn.Conv1d: AuroraConv1d,
    nn.Conv2d: AuroraConv2d,
    nn.Conv3d: AuroraConv3d,
    nn.Embedding: AuroraEmbedding,
}

MAMBA: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("conv1d", "x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(
        ("mamba2", "falcon_h1", "nemotron_h", "bamba", "granitemoehybrid", "zamba2"), ("conv1d", "out_proj")
    ),
    "jamba": ("conv1d", "dt_proj"),
    "zamba": ("conv1d",),
}
"""By the type of model, layers of Mamba whose weight a kernel reads without calling the layer."""

ALL_LINEAR = "all-linear"
"""PEFT's name for every linear layer but the output."""


def named(
    paths: Iterable[str],
    target_modules: Collection[str] | str,
    *,
    exclude_modules: Collection[str] | str | None = None,
    layers_to_transform: Collection[int] | int | None = None,
    layers_pattern: Collection[str] | str | None = None,
    modules_to_save: Collection[str] = (),
) -> list[str]:
    """The paths that PEFT would adapt for a configuration with these fields, in their order."""
    config = SimpleNamespace(
        target_modules=target_modules,
        target_parameters=None,
        modules_to_save=list(modules_to_save) or None,
        exclude_modules=exclude_modules,
        layers_to_transform=layers_to_transform,
        layers_pattern=layers_pattern,
    )
    # PEFT's answer for an excluded module is an object that is false
    return [path for path in paths if check_target_module_exists(config, path)]


def trained_whole(path: str, modules_to_save: Collection[str]) -> bool:
    """Whether a module is one of these or within one, by how PEFT finds what it trains whole.

    Any path that ends with such a name is meant: "classifier" is the `pre_classifier` of DistilBERT, too. An adapter
    there is an error.
    """
    parts = path.split(".")
    prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return any(prefix.endswith(tuple(modules_to_save)) for prefix in prefixes)


def exactly(paths: Collection[str], every: Iterable[str]) -> list[str] | str:
    """`target_modules` that name these modules and no other.

    PEFT takes an entry for each module whose path ends with it: where that is more than the modules meant, they are
    named by a pattern.

    Args:
        paths: of the modules meant.
        every: the paths of all modules of the model.
    """
    return "|".join(map(re.escape, sorted(paths))) if mistakable(paths, every) else sorted(paths)


def mistakable(paths: Collection[str], every: Iterable[str]) -> tuple[str, ...]:
    """The modules that PEFT would take for one of these, as their paths end with its path."""
    ends = tuple(f".{path}" for path in paths)
    return tuple(path for path in every if path.endswith(ends) and path not in paths)


def model_type(model: Any) -> str | None:
    """What Transformers calls the architecture; None of a model that is not one of its."""
    return getattr(getattr(model, "config", None), "model_type", None)


def is_uncalled(model: Any, path: str, module: nn.Module) -> bool:
    """Whether a model reads the weight of this layer without calling it, so that an adapter there would do nothing: a
    projection of `nn.MultiheadAttention`, or a layer of Mamba."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return True
    return f".{path}".endswith(tuple(f".{name}" for name in MAMBA.get(model_type(model) or "", ())))


def layer_class(
    model: nn.Module, base_layer: nn.Module, key: str, quantization: Mapping[str, Any]
) -> type[AuroraLayer]:
    """The class of AuroRA layer for a layer of the base model.

    Args:
        model: that the adapter is put into.
        base_layer: of the model, without an adapter of any method.
        key: its path, for errors.
        quantization: what PEFT says of the model's quantisation.

    Raises:
        ValueError: no adapter can be put on it, or one there would do nothing.
    """
    if is_uncalled(model, key, base_layer):
        problem = (
            "is incompatible with Mamba-based models and torch.nn.MultiheadAttention, which read its weight without "
            "calling it: an adapter there would do nothing"
        )
    elif _computes_otherwise(base_layer):
        problem = f"is a {type(base_layer).__name__}, whose forward pass is not that of its kind of layer"
    else:
        for kind, layer_cls in LAYERS.items():
            if isinstance(base_layer, kind):
                return layer_cls
        if resolve_quantization_backend(base_layer, **quantization) is not None:
            return AuroraLinear
        problem = (
            f"is a {type(base_layer).__name__}, which AuroRA does not support: it adapts torch.nn.Linear (also "
            "quantised), Conv1d, Conv2d, Conv3d, Embedding and transformers' Conv1D"
        )
    raise ValueError(f"Target module {key!r} {problem}. Leave it out with exclude_modules.")


def _computes_otherwise(layer: nn.Module) -> bool:
    """Whether a convolution or an embedding has a forward pass of its own, or cuts vectors to a norm at each look-up. A
    scale of what an embedding looks up is carried over."""
    if getattr(layer, "max_norm", None) is not None:
        return True
    kind = next((kind for kind in LAYERS if kind is not nn.Linear and isinstance(layer, kind)), None)
    return kind is not None and type(layer).forward is not kind.forward and not hasattr(layer, "embed_scale")
