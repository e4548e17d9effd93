"""Factors of zeros where an adapter has none, for engines that take a LoRA by kinds of layers, not layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..tuner import AuroraLinear
from ..tuner.linear import linear_shape
from ..tuner.peft_names import BaseTunerLayer

STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that engines make one of: where one has factors, they may expect that the others have some."""

Factors = dict[str, tuple[Tensor, Tensor]]
"""LoRA's A (r, d_in) and B (d_out, r) of each layer, by its path."""


def zero_factors(factors: Factors, modules: dict[str, nn.Module]) -> Factors:
    """Factors of the same rank, all zeros, for the linear layers that a LoRA leaves out of the kinds that it adapts.

    A kind is all layers whose paths differ in numbers alone, such as `model.layers.*.self_attn.q_proj`; those that
    engines stack with it count as adapted, too.

    Args:
        factors: of one rank.
        modules: every module of the model, by its path; the layer of an adapter stands for the one that it adapts.
    """
    adapted = {path: _base(modules[path]) for path in factors if isinstance(modules[path], AuroraLinear)}
    kinds = {kind for path in adapted for kind in _stacked_with(_kind(path))}
    types = (nn.Linear, Conv1D, *{type(layer) for layer in adapted.values()})
    zeros: Factors = {}
    for path, module in modules.items():
        layer = _base(module)
        if path not in factors and _kind(path) in kinds and isinstance(layer, types):
            A, B = factors[next(iter(adapted))]
            d_out, d_in = linear_shape(layer)
            zeros[path] = A.new_zeros(len(A), d_in), B.new_zeros(d_out, len(A))
    return zeros


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _kind(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _stacked_with(kind: str) -> Iterator[str]:
    """The kind itself, and those of the layers beside it that engines stack with it."""
    lead, dot, name = kind.rpartition(".")
    together = next((names for names in STACKED if name in names), (name,))
    return (f"{lead}{dot}{each}" for each in together)
