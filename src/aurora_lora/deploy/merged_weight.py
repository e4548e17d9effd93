"""The weight of any PEFT layer with its adapters merged, without merging it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, MergeError
from ..tuner import AuroraLayer
from ..tuner.peft_names import BaseTunerLayer

QUANTISING = ("bnb", "hqq", "torchao")
"""Modules of PEFT whose layers, when they merge, dequantise and quantise by themselves."""


def adapters_of(layer: Any) -> list[str]:
    """The active adapters that this layer has, in the order in which they are merged."""
    held = {name for part in layer.adapter_layer_names for name in getattr(layer, part, ())}
    return [name for name in layer.active_adapters if name in held]


def layers_with_adapters(model: nn.Module, action: str, error: type[Exception]) -> Iterator[tuple[str, Any, list[str]]]:
    """(path, layer, names) of each layer of any method that has active adapters; the error as `check_in_use`."""
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (names := adapters_of(module)):
            check_in_use(path, module, action, error)
            yield path, module, names


def check_in_use(path: str, layer: Any, action: str, error: type[Exception] = CalibrationError) -> None:
    """Raise an error unless the layer's adapters take part in its forward pass."""
    if layer.merged:
        raise error(f"{path} is merged: call unmerge_adapter() before {action}.")
    if layer.disable_adapters:
        raise error(f"The adapters of {path} are switched off: enable them before {action}.")


def merged_weight(path: str, layer: BaseTunerLayer, weight: Tensor, names: Sequence[str]) -> Tensor:
    """W0 + dW as the layer itself would merge it, (d_out, d_in) in float32; changes nothing.

    Args:
        path: names the layer in errors.
        layer: of AuroRA, or of any method of PEFT whose update can be added to the weight.
        weight: W0, dequantised, (d_out, d_in) in float32.
        names: the adapters.

    Raises:
        MergeError: the method's update cannot be added to the weight of a quantised layer.
        FormError, NotCalibratedError, StaleCalibrationError: of an AuroRA adapter; see `get_factors`.
    """
    merged = weight.clone()
    with torch.no_grad(), _dense_base(layer, weight):
        for name in names:
            merged = _with_adapter(path, layer, merged, name).float()
    return merged


def check_change(path: str, layer: Any, names: Sequence[str], update: Tensor, S: Tensor) -> None:
    """Raise a MergeError unless dW x is what the adapters add to the output, for a few x like its inputs.

    Args:
        path: names the layer in the error.
        layer: of any method of PEFT on a linear layer.
        names: of its adapters.
        update: dW, (d_out, d_in).
        S: E[x x^T], (d_in, d_in).
    """
    noise = torch.randn(8, len(S), generator=torch.Generator().manual_seed(0)).to(S.device)
    dtype = layer.get_base_layer().weight.dtype
    x = (noise * S.diagonal().sqrt()).to(dtype if dtype.is_floating_point else torch.float32)
    plain = layer.get_base_layer()(x)
    added = (layer(x) - plain).float()
    expected = x.float() @ update.T
    allowed = 0.05 * expected.norm() + 0.02 * plain.float().norm()
    if not (added - expected).norm() <= allowed:
        raise MergeError(
            f"{path}: what its adapters ({', '.join(names)}) compute is no change of the weight, so they cannot be "
            "merged."
        )


def _with_adapter(path: str, layer: Any, weight: Tensor, name: str) -> Tensor:
    if isinstance(layer, AuroraLayer):
        return weight + layer.get_delta_weight(name).to(weight)
    if name in getattr(layer, "lora_variant", ()):  # DoRA and its like
        layer.get_base_layer().weight.data = weight
        merged: Tensor = layer.lora_variant[name].merge_safe(layer, name, weight)
        return merged
    if getattr(layer, "lora_bias", {}).get(name):
        raise MergeError(f"{path}: the bias that lora_bias=True trains cannot be merged into a quantised layer.")
    method, kind = type(layer).__module__.split(".")[-2:]
    if kind not in QUANTISING:
        return _own_merge(layer, weight, name)
    if not hasattr(layer, "get_delta_weight"):
        raise MergeError(f"{path}: {method} has no update that could be added to the weight of a quantised layer.")
    update: Tensor = layer.get_delta_weight(name)
    return weight + update.to(weight)


def _own_merge(layer: Any, weight: Tensor, name: str) -> Tensor:
    """What the layer's own `merge` makes of an unquantised weight."""
    backend, layer.quantization_backend = layer.quantization_backend, None
    already = list(layer.merged_adapters)
    try:
        layer.get_base_layer().weight.data = weight.clone()
        layer.merged_adapters = []
        layer.merge(adapter_names=[name])
        merged: Tensor = layer.get_base_layer().weight.data
    finally:
        layer.quantization_backend = backend
        layer.merged_adapters = already
    return merged


@contextmanager
def _dense_base(layer: Any, weight: Tensor) -> Iterator[None]:
    """While the block runs, the layer's base is an unquantised one of the same shape."""
    owner = layer
    while isinstance(owner.base_layer, BaseTunerLayer):
        owner = owner.base_layer
    base = owner.base_layer
    dense = nn.Linear(1, 1, bias=base.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.clone(), requires_grad=False)
    dense.in_features, dense.out_features = weight.shape[1], weight.shape[0]
    dense.bias = base.bias
    owner.base_layer = dense
    try:
        yield
    finally:
        owner.base_layer = base
