"""Base weights: which an update can be merged into, their originals, and bitsandbytes' packed ones unpacked."""

from __future__ import annotations

import copy
import importlib
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import MergeError
from .peft_names import AuxiliaryTrainingWrapper, QuantizationBackend, onload_layer

_BESIDE = "or serve the adapter beside the base with aurora_lora.export_lora(model, folder)"


def is_float8(dtype: torch.dtype) -> bool:
    """Whether it is a precision to store weights in, as diffusers' layerwise casting does, and not to compute in."""
    return dtype.is_floating_point and dtype.itemsize == 1


def is_recomputed(layer: nn.Module) -> bool:
    """Whether a layer computes its weight from other parameters, by a parametrisation or by a hook, as weight
    normalisation does: what is written to the weight is lost then."""
    if parametrize.is_parametrized(layer, "weight"):
        return True
    is_attribute = isinstance(vars(layer).get("weight"), Tensor)  # and no parameter or buffer
    return is_attribute and any(name.startswith("weight_") for name in layer._parameters)


def check_takes_merge(base: nn.Module, backend: QuantizationBackend | None) -> None:
    """Raise what keeps an update from being merged into the weight of a base layer, with PEFT's access to that if it is
    quantised.

    Raises:
        MergeError: the weight is computed from others, as weight normalisation does, and as PEFT does for an output
            layer that is tied to embeddings of which single tokens are trained; or it is in float8 or another format
            that PEFT has no access to.
        NotImplementedError: the quantisation cannot be undone and done again, or the weight is sharded.
    """
    weight = getattr(base, "weight", None)
    if isinstance(base, AuxiliaryTrainingWrapper):
        raise MergeError(
            "The adapted layer is tied to embeddings of which single tokens are trained (trainable_token_indices), "
            f"and what is merged into it would be lost: train without one of the two, {_BESIDE}."
        )
    if is_recomputed(base):
        raise MergeError(
            f"The base weight of a {type(base).__name__} is computed from other parameters (weight normalisation, for "
            "example), and what is merged into it would be lost: take that off the base layer first, or leave such "
            "layers out by exclude_modules."
        )
    if backend is not None and not backend.supports_merge:
        raise NotImplementedError(
            f"A base layer quantised by {backend.backend_name} cannot be merged into: load the base model "
            f"unquantised to merge, {_BESIDE}."
        )
    unknown = isinstance(weight, Tensor) and (not weight.is_floating_point() or is_float8(weight.dtype))
    scaled = any(hasattr(base, name) for name in ("weight_scale", "weight_scale_inv", "online_quant"))
    if backend is None and (unknown or scaled):
        raise MergeError(
            f"The weight of a {type(base).__name__} is stored in float8 or in a quantised format that PEFT has no "
            f"access to: load the base model dequantised to merge, {_BESIDE}."
        )
    if backend is None:
        base.state_dict()  # FSDP2's hook there puts a weight that is gathered for a forward pass back into shards
    if any(hasattr(getattr(base, "weight", None), name) for name in ("full_tensor", "ds_id")):
        raise NotImplementedError(
            "The base weight is sharded (by FSDP2 or DeepSpeed's ZeRO-3): save the adapter, load it over an unsharded "
            "base model, and merge there (docs/trainers.md)."
        )


def in_memory(layer: Any) -> AbstractContextManager[None]:
    """While the block runs, the weight of the layer's base layer is there, also where Accelerate offloads it."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        loaded: AbstractContextManager[None] = onload_layer(layer)
        return loaded
    return nullcontext()


class OriginalWeight:
    """A base layer's weight, with its quantisation state, kept in main memory to be given back bit for bit.

    Args:
        base_layer: the layer whose weight is about to be replaced.
        backend: PEFT's access to it if it is quantised.
        shared: whether another module has the same parameter (tied embeddings): that module keeps it, so it is not
            copied.
    """

    def __init__(self, base_layer: nn.Module, backend: QuantizationBackend | None, shared: bool) -> None:
        self.base_layer = base_layer
        self.backend = backend
        weight: Any = getattr(base_layer, "weight", None)  # HQQ has none
        self.parameter = weight if shared and backend is None else None
        self._stored: Any
        if backend is None:
            self._stored = SimpleNamespace(weight=weight.detach() if shared else _to_cpu(weight.detach(), copied=True))
        elif backend.backend_name == "hqq":
            self._stored = base_layer  # merging makes another layer of it
        elif backend.backend_name == "bnb 8bit":
            state: Any = base_layer.state
            scale = weight.SCB if state.SCB is None else state.SCB
            self._stored = SimpleNamespace(
                weight=_to_cpu(weight.data, copied=True), state=SimpleNamespace(SCB=_to_cpu(scale, copied=True))
            )
        elif backend.backend_name == "bnb 4bit":  # PEFT's merge changes the attributes of the old parameter
            self._stored = SimpleNamespace(weight=_to_cpu(copy.deepcopy(weight)))
        else:
            self._stored = SimpleNamespace(weight=_to_cpu(weight))

    def weight(self) -> Tensor:
        """The weight, dequantised, where it was kept."""
        if self.backend is None:
            kept: Tensor = self._stored.weight
            return kept
        return dequantized(self._stored, self.backend)

    def restore(self, layer: Any) -> None:
        """Give it back to the base layer of `layer`; dequantised where that has been dequantised since."""
        base: Any = layer.get_base_layer()
        if self._stored is self.base_layer:
            layer.base_layer = self.base_layer
        elif self.parameter is not None:
            # while every module that shares it was merged, no module had it, to be moved and cast with the model
            self.parameter.data = self.parameter.data.to(base.weight)
            base.weight = self.parameter
        elif self.backend is None or (base is not self.base_layer and layer.quantization_backend is None):
            base.weight.data = self.weight().to(base.weight)
        elif self.backend.backend_name == "bnb 8bit":
            device = base.weight.device
            data, scale = self._stored.weight.to(device), self._stored.state.SCB.to(device)
            base.weight = type(base.weight)(data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=scale)
            base.state.reset_grads()
        else:
            kept: Any = self._stored.weight
            base.weight = kept if kept.device == base.weight.device else kept.to(base.weight.device)
            if self.backend.backend_name == "bnb 4bit":
                base.quant_state = base.weight.quant_state


def dequantized(base_layer: Any, backend: QuantizationBackend) -> Tensor:
    """The weight of a quantised layer, as its forward pass uses it. Changes nothing.

    PEFT dequantises no 4-bit weight that bitsandbytes has packed for a CPU; see `unpacked`.
    """
    if not is_packed(base_layer):
        return backend.get_base_weight(base_layer)
    data, state = unpacked(base_layer.weight)
    weight: Tensor = importlib.import_module("bitsandbytes.functional").dequantize_4bit(data, state)
    return weight


def unpacked(weight: Any) -> tuple[Tensor, Any]:
    """The bytes and the quantisation state of a 4-bit weight of bitsandbytes. Changes nothing.

    On a CPU with AVX512-BF16, bitsandbytes packs the weight in another way at the first call in eval mode, and rounds
    the scales of its blocks to bfloat16. Its own unpacking, as in `state_dict()`, leaves the scales as packing made
    them, (blocks of a row, rows), unless they were quantised themselves.
    """
    state = weight.quant_state
    if _as_loaded(state):
        return weight.data, state
    data, state = weight.data, copy.deepcopy(state)
    if getattr(state, "packing_format_for_cpu", False):
        bnb: Any = importlib.import_module("bitsandbytes.functional")
        data, state = bnb._convert_weight_packed_for_cpu_inverse(data, state)
    if state.absmax.dim() == 2:
        state.absmax = state.absmax.T.reshape(-1).float()
    return data, state


def is_packed(layer: Any) -> bool:
    """Whether bitsandbytes has packed the layer's 4-bit weight for a CPU, or packed and unpacked it."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return state is not None and not _as_loaded(state)


def _as_loaded(state: Any) -> bool:
    return not getattr(state, "packing_format_for_cpu", False) and getattr(state.absmax, "ndim", 1) == 1


def _to_cpu(value: Any, copied: bool = False) -> Any:
    if value.device.type == "cpu":
        return value.clone() if copied else value
    return value.to("cpu")


def parameter_like(weight: nn.Parameter, data: Tensor) -> nn.Parameter:
    """A parameter of its own with these values."""
    return nn.Parameter(data, requires_grad=weight.requires_grad)
