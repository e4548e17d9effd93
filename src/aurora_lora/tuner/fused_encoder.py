"""`nn.TransformerEncoder` and its layers in eval mode: a fused kernel, which reads weights and calls no layer.

It also reads nested tensors, which the encoder makes of a batch with a padding mask, and which single layers cannot.
"""

from __future__ import annotations

from typing import Any

from torch import nn

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
