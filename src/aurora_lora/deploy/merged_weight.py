"""The weight and the bias of any PEFT layer with its adapters merged, without merging it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import Tensor, nn

from ..errors import MergeError, one_line
from ..ops.update import without_autocast
from ..temporary_attributes import temporary_attributes
from ..tuner import AuroraLayer
from ..tuner.adapters import by_plain_path, plain_path
from ..tuner.peft_names import BaseTunerLayer
from .inputs import check_in_use

QUANTISING = ("bnb", "hqq", "torchao")
"""Modules of PEFT whose layers, when they merge, dequantise and quantise by themselves."""


def adapters_of(layer: Any) -> list[str]:
    """The active adapters that this layer has, in the order in which they are merged."""
    held = {name for part in layer.adapter_layer_names for name in getattr(layer, part, ())}
    return [name for name in layer.active_adapters if name in held]


def layers_with_adapters(model: nn.Module, action: str) -> Iterator[tuple[str, Any, list[str]]]:
    """(path in the plain model, layer, names): each layer of any method with active adapters; see `check_in_use`."""
    layers = ((path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    for path, layer in by_plain_path(model, ((path, layer) for path, layer in layers if adapters_of(layer))):
        check_in_use(path, layer, action)
        inner = getattr(layer, "base_layer", None)
        # of a module with several adapted parameters (`target_parameters`), PEFT wraps each in turn
        several = isinstance(layer, ParamWrapper) and isinstance(inner, ParamWrapper)
        if isinstance(inner, BaseTunerLayer) and adapters_of(inner) and not several:
            raise MergeError(
                f"{path} has an adapter of {type(layer).__name__} around one of {type(inner).__name__}: {action} takes "
                "one kind at a time. Merge the inner one first, or remove one of the two."
            )
        yield path, layer, adapters_of(layer)


def merged_linear(
    path: str, layer: BaseTunerLayer, weight: Tensor, names: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """W0 + dW (d_out, d_in), and the bias (d_out,) if there is one, as the layer would merge them; changes nothing.

    Both are in float32. Few methods change the bias: those that act on the layer's output, as (IA)3 does.

    Args:
        path: names the layer in errors.
        layer: of AuroRA, or of any method of PEFT whose update can be added to the weight.
        weight: W0, dequantised, (d_out, d_in).
        names: the adapters.

    Raises:
        MergeError: the method's update cannot be added to a weight, or not to that of a quantised layer, or it trains a
            bias that the layer does not have.
        FormError, NotCalibratedError, StaleCalibrationError: of an AuroRA adapter; see `get_factors`.
    """
    merged = weight.clone()
    with torch.no_grad(), without_autocast(merged), _dense_base(layer, weight) as dense:
        try:
            if isinstance(layer, AuroraLayer) or _quantises(layer):
                for name in names:
                    merged = _with_adapter(path, layer, weight, merged, name).to(weight.dtype)
            else:
                for name in names:
                    trains_bias(path, layer, name)
                merged = _own_merge(layer, weight, names).to(weight.dtype)
        except NotImplementedError as error:  # of Lily, activated LoRA and others
            method = type(layer).__module__.split(".")[-2]
            raise MergeError(f"{path}: PEFT cannot merge its adapters of {method}: {one_line(error)}") from error
    return merged.float(), None if dense.bias is None else dense.bias.data.float()


def check_change(path: str, layer: Any, names: Sequence[str], update: Tensor, bias: Tensor | None, S: Tensor) -> None:
    """Raise a MergeError unless dW x + db is what the adapters add to the output, for a few x like its inputs.

    Args:
        path: names the layer in the error.
        layer: of any method of PEFT on a linear layer.
        names: of its adapters.
        update: dW, (d_out, d_in).
        bias: the merged one, b + db, (d_out,).
        S: E[x x^T], (d_in, d_in).
    """
    noise = torch.randn(8, len(S), generator=torch.Generator().manual_seed(0), device="cpu").to(S.device)
    dtype = layer.get_base_layer().weight.dtype
    x = (noise * S.diagonal().sqrt()).to(dtype if dtype.is_floating_point else torch.float32)
    plain = layer.get_base_layer()(x)
    added = (layer(x) - plain).float()
    expected = x.float() @ update.T
    if (change := bias_change(layer, bias)) is not None:
        expected += change
    allowed = 0.05 * expected.norm() + 0.02 * plain.float().norm()
    if not (added - expected).norm() <= allowed:
        raise MergeError(
            f"{path}: what its adapters ({', '.join(names)}) compute is no change of the weight and the bias, so they "
            "cannot be merged."
        )


def bias_change(layer: Any, bias: Tensor | None) -> Tensor | None:
    """What a merge adds to the bias, (d_out,) in float32; None where it stays what it is.

    Args:
        layer: of any method of PEFT on a linear layer.
        bias: the merged one.
    """
    if bias is None:
        return None
    change = bias - layer.get_base_layer().bias.float()
    return change if change.any() else None


def trains_bias(path: str, layer: Any, name: str) -> bool:
    """Whether an adapter of PEFT's LoRA trains a bias of its own.

    Args:
        path: names the layer in the error.
        layer: of any method of PEFT.
        name: of the adapter.

    Raises:
        MergeError: it does, and the layer has none that it could be merged into.
    """
    trains: bool = getattr(layer, "lora_bias", {}).get(name, False)
    if trains and getattr(layer.get_base_layer(), "bias", None) is None:
        raise MergeError(f"{path}: the bias that lora_bias=True trains cannot be merged: the layer has none.")
    return trains


def prepare_biases(model: nn.Module) -> None:
    """Before PEFT merges and unloads a model: give LoRA's biases the scale that they have in the forward pass, which
    PEFT's own merge into a quantised layer leaves out.

    Raises:
        MergeError: see `trains_bias`; nothing is changed then.
    """
    trained = [
        (layer, name)
        for path, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and not layer.merged
        for name in adapters_of(layer)
        if trains_bias(plain_path(model, path), layer, name)
    ]
    for layer, name in trained:
        if _quantises(layer):
            layer.lora_B[name].bias.data *= layer.scaling[name]  # type: ignore[attr-defined]


def _quantises(layer: Any) -> bool:
    """Whether the layer, when it merges, dequantises and quantises by itself."""
    return type(layer).__module__.rsplit(".", 1)[-1] in QUANTISING


def _with_adapter(path: str, layer: Any, base: Tensor, weight: Tensor, name: str) -> Tensor:
    """A weight, to which other adapters may have been added, with one more; `base` is W0."""
    if isinstance(layer, AuroraLayer):
        return weight + layer.get_delta_weight(name).to(weight)
    if name in getattr(layer, "lora_variant", ()):  # DoRA and its like
        layer.get_base_layer().weight.data = weight
        with _told_base_weight(layer, base):
            merged: Tensor = layer.lora_variant[name].merge_safe(layer, name, weight)
        return merged
    with_bias = trains_bias(path, layer, name)
    method = type(layer).__module__.split(".")[-2]
    if not hasattr(layer, "get_delta_weight"):
        raise MergeError(f"{path}: {method} has no update that could be added to the weight of a quantised layer.")
    update: Tensor = layer.get_delta_weight(name)
    if method == "hira":  # which tells B A alone
        update = base * update.to(base)
    if with_bias:  # with the scale, as in the forward pass: PEFT's merge into a quantised layer leaves it out
        layer.get_base_layer().bias.data += layer.lora_B[name].bias * layer.scaling[name]
    return weight + update.to(weight)


@contextmanager
def _told_base_weight(layer: Any, base: Tensor) -> Iterator[None]:
    """While the block runs, PEFT's variants of LoRA take W0 for their norms, and not what others were added to."""
    layer._caches["unmerged_base_weight"] = base
    try:
        yield
    finally:
        layer._caches.pop("unmerged_base_weight", None)


def _own_merge(layer: Any, weight: Tensor, names: Sequence[str]) -> Tensor:
    """What the layer's own `merge` makes of an unquantised weight; it merges into the bias of the base too."""
    own: dict[str, Any] = {"merged_adapters": []}
    if layer.quantization_backend is not None:
        own["quantization_backend"] = None
    if hasattr(layer, "_base_weight_before_merge"):  # a copy of W0 that some methods would keep
        own["_base_weight_before_merge"] = None
    with temporary_attributes([layer], **own):
        layer.get_base_layer().weight.data = weight.clone()
        layer.merge(adapter_names=list(names))
        merged: Tensor = layer.get_base_layer().weight.data
    return merged


@contextmanager
def _dense_base(layer: Any, weight: Tensor) -> Iterator[nn.Linear]:
    """While the block runs, the layer's base is an unquantised one of the same shape, with a copy of the bias."""
    owner = layer
    while isinstance(owner.base_layer, BaseTunerLayer):
        owner = owner.base_layer
    base = owner.base_layer
    dense = nn.Linear(1, 1, bias=base.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.clone(), requires_grad=False)
    dense.in_features, dense.out_features = weight.shape[1], weight.shape[0]
    if base.bias is not None:
        dense.bias = nn.Parameter(base.bias.to(weight, copy=True), requires_grad=False)
    owner.base_layer = dense
    try:
        yield dense
    finally:
        owner.base_layer = base
