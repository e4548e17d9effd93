"""`nn.TransformerEncoderLayer`: its fused kernel of eval mode, which reads the weights of layers and calls none."""

from __future__ import annotations

from typing import Any

FUSED = "aurora_kept_activation"
"""On a `TransformerEncoderLayer` with adapters: what its own switch of the fused kernel was."""


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
