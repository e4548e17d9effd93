"""`nn.TransformerEncoder` and its layers in eval mode: a fused kernel, which reads weights and calls no layer.

It also reads nested tensors, which the encoder makes of a batch with a padding mask, and which single layers cannot.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from .naming import ALL_LINEAR, exactly

OTHER_OUTPUTS = ("Llama4Router", "PhimoeTopKRouter", "DeepseekV4GroupedLinear")
"""Subclasses of `nn.Linear` in Transformers whose output is more than a linear map of the whole input."""

FUSED = "aurora_kept_activation"
"""The attribute of a `TransformerEncoderLayer` with adapters with what its own switch of the fused kernel was."""


def call_layers_of(parent: Any) -> None:
    """Turn the kernel off for a layer, some of whose layers have adapters."""
    if not hasattr(parent, FUSED):
        setattr(parent, FUSED, parent.activation_relu_or_gelu)
    parent.activation_relu_or_gelu = 0


def may_fuse_layers_of(parent: Any) -> None:
    """Undo `call_layers_of`."""
    if hasattr(parent, FUSED):
        parent.activation_relu_or_gelu = getattr(parent, FUSED)
        delattr(parent, FUSED)


def leave_out_uncalled(config: Any, model: nn.Module, is_bypassed: Callable[[str], bool]) -> None:
    """Where `target_modules` is "all-linear", leave out what the model does not call, such as the projections of
    `nn.MultiheadAttention`, and what is no linear map (`OTHER_OUTPUTS`).

    They become `exclude_modules` of the configuration, so that the adapter loads as it was made.

    Args:
        config: of the adapter.
        model: that it is for.
        is_bypassed: whether the model does not call its layers of a name.
    """
    if not isinstance(config.target_modules, str) or config.target_modules.lower() != ALL_LINEAR:
        return
    kind = nn.modules.linear.NonDynamicallyQuantizableLinear
    paths = sorted(
        path
        for path, module in model.named_modules()
        if isinstance(module, kind)
        or type(module).__name__ in OTHER_OUTPUTS
        or (isinstance(module, nn.Linear) and is_bypassed(path.rpartition(".")[2]))
    )
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
        "that an adapter there would do nothing, or they return something else than a linear layer does (routers).",
        stacklevel=4,
    )


NESTED = "aurora_kept_nested_tensor"
"""The attribute of a `TransformerEncoder` with adapters with what its own switch of nested tensors was."""


def keep_padding(model: nn.Module, has_adapter: type[nn.Module]) -> None:
    """No nested tensors in encoders that have an adapter."""
    for encoder in _encoders(model):
        if not hasattr(encoder, NESTED) and any(isinstance(module, has_adapter) for module in encoder.modules()):
            setattr(encoder, NESTED, encoder.use_nested_tensor)
            encoder.use_nested_tensor = False


def may_drop_padding(model: nn.Module) -> None:
    """Undo `keep_padding`."""
    for encoder in _encoders(model):
        if hasattr(encoder, NESTED):
            encoder.use_nested_tensor = getattr(encoder, NESTED)
            delattr(encoder, NESTED)


def _encoders(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
