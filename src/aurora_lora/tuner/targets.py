"""Which layers an adapter can be put on, and as what."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .conv import AuroraConv1d, AuroraConv2d, AuroraConv3d
from .embedding import AuroraEmbedding
from .layer import AuroraLayer
from .linear import AuroraLinear
from .naming import ALL_LINEAR, exactly
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

MAMBA: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("conv1d", "x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(
        ("mamba2", "falcon_h1", "nemotron_h", "bamba", "granitemoehybrid", "zamba2"), ("conv1d", "out_proj")
    ),
    "jamba": ("conv1d", "dt_proj"),
    "zamba": ("conv1d",),
}
BYPASSED: dict[str, tuple[str, ...]] = {
    **MAMBA,
    **dict.fromkeys(
        (
            *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear"),
            *("bailing_hybrid", "glm5_next", "glm5_next_text", "inkling_mm_model", "inkling_text"),
            *("inkling2", "inkling2_text"),
        ),
        ("conv1d",),
    ),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), ("linear_attn.conv1d",)),
    "recurrent_gemma": ("conv_1d",),  # in generation with a cache, and so those of the next
    "reformer": ("query_key", "value"),
    **dict.fromkeys(
        (
            *("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "pop2piano", "bart", "mbart", "marian"),
            *("pegasus", "pegasus_x", "bigbird_pegasus", "blenderbot", "blenderbot-small", "led", "plbart", "mvp"),
            *("m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2"),
        ),
        ("shared",),  # encoder and decoder call embeddings of their own, which have its weight
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), ("conv.conv",)),
    **dict.fromkeys(
        ("wav2vec2", "data2vec-audio", "unispeech-sat", "wav2vec2-conformer", "wav2vec2-bert"),
        ("kernel",),  # of the TDNN layers above it, for x-vectors
    ),
    "wavlm": ("q_proj", "k_proj", "v_proj", "out_proj", "kernel"),
    **dict.fromkeys(("detr", "conditional_detr"), ("bbox_attention.k_proj", "bbox_attention.k_linear")),
    "mobilebert": ("predictions.dense", "predictions.decoder"),
    "neomme": ("unembedding_projection",),
    "longcat_flash": ("classifier",),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), ("correction_coefs",)),
}
"""By the type of model, layers whose weight is read without calling the layer, always, by the kernels of training or in
generation: by their name, or the end of their path."""
OTHER_OUTPUTS = (
    *("Llama4Router", "PhimoeTopKRouter"),
    *("DeepseekV4GroupedLinear", "FP8GroupedLinear", "IdeficsDecoupledLinear"),
)
"""Subclasses of `nn.Linear` in Transformers whose output is more than a linear map of the whole input."""
SAME_OUTPUTS = {
    "bitsandbytes.nn.modules": ("Embedding",),
    "diffusers.models.autoencoders.autoencoder_kl_cogvideox": ("CogVideoXSafeConv3d",),
}
"""By module, layers with a forward pass of their own that computes what their kind of layer does."""


def bypassed_by(model: Any, path: str) -> str | None:
    """The type of the model that does not call the layer at this path, so that an adapter there would do nothing: the
    innermost model of Transformers around it. None where it is called."""
    kind, module = model_type(model), model
    for part in path.split(".")[:-1]:
        module = module.get_submodule(part)
        kind = model_type(module) or kind
    if kind == "reformer" and not hasattr(module, "query_key"):
        return None  # its local attention calls its `value`
    ends = tuple(f".{name}" for name in BYPASSED.get(kind or "", ()))
    return kind if f".{path}".endswith(ends) else None


def is_uncalled(model: Any, path: str, module: nn.Module) -> bool:
    """Whether a module of this model is a linear layer that the model does not call, or one whose output is more than a
    linear map: an adapter there would do nothing, or something else."""
    return (
        isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        or type(module).__name__ in OTHER_OUTPUTS
        or (isinstance(module, nn.Linear) and bypassed_by(model, path) is not None)
    )


def check_called(model: Any, key: str) -> None:
    """Raise a ValueError where a model reads the weight of a layer without calling the layer, or changes it in `eval`.

    Args:
        model: that an adapter is put into.
        key: the path of the layer.
    """
    if (kind := bypassed_by(model, key)) is not None:
        models = "Mamba-based" if kind in MAMBA else kind
        raise ValueError(
            f"Target module {key!r} is incompatible with {models} models: a {kind} model reads its weight without "
            "calling it, always, in training or in generation, and an adapter there would do nothing then. Leave it "
            "out with exclude_modules, of a saved adapter in its adapter_config.json."
        )
    every = getattr(getattr(model, "config", None), "rescale_every", 0)
    if model_type(model) == "rwkv" and every > 0 and key.endswith((".attention.output", ".feed_forward.value")):
        raise ValueError(
            f"Target module {key!r}: in eval mode RWKV divides its weight and not an adapter's update. Set "
            "model.config.rescale_every = 0 first, or leave the module out by exclude_modules."
        )


def leave_out_uncalled(config: Any, model: nn.Module) -> None:
    """Where `target_modules` is "all-linear", leave out what the model does not call, such as the projections of
    `nn.MultiheadAttention`, and what is no linear map (`OTHER_OUTPUTS`).

    They become `exclude_modules` of the configuration, so that the adapter loads as it was made.

    Args:
        config: of the adapter.
        model: that it is for.
    """
    if not isinstance(config.target_modules, str) or config.target_modules.lower() != ALL_LINEAR:
        return
    paths = sorted(path for path, module in model.named_modules() if is_uncalled(model, path, module))
    given = config.exclude_modules
    if not paths or (isinstance(given, str) and all(re.fullmatch(given, path) for path in paths)):
        return
    found = exactly(paths, (path for path, _ in model.named_modules()))
    if isinstance(given, str):
        config.exclude_modules = "|".join([f"(?:{given})", *map(re.escape, paths)])
    elif isinstance(found, str):  # names would leave out others as well
        config.exclude_modules = "|".join([*(rf"(?:.*\.)?{re.escape(name)}" for name in sorted(given or ())), found])
    else:
        config.exclude_modules = {*(given or ()), *paths}
    warnings.warn(
        f"Left out of 'all-linear': {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}. The model "
        "reads their weight without calling them (projections of a torch.nn.MultiheadAttention, layers of Mamba), so "
        "that an adapter there would do nothing, or they return something else than a linear layer does (routers, "
        "grouped layers).",
        stacklevel=4,
    )


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
    if computes_otherwise(base_layer):
        raise ValueError(
            f"Target module {key!r} is a {type(base_layer).__name__}, whose forward pass is not that of its kind of "
            "layer (positions, padding, a norm or outputs of its own): an adapter would add something else than a "
            "merge. Leave it out with exclude_modules."
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


def computes_otherwise(layer: nn.Module) -> bool:
    """Whether a layer computes something else than its kind of layer does. A scale of what an embedding looks up is
    carried over."""
    name = type(layer).__name__
    if name in OTHER_OUTPUTS or name in SAME_OUTPUTS.get(type(layer).__module__, ()):
        return name in OTHER_OUTPUTS
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
    return kind is not None and type(layer).forward is not kind.forward and not hasattr(layer, "embed_scale")
