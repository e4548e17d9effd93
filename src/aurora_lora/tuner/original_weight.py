"""The base weight as it was before the first merge."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .peft_names import QuantizationBackend, resolve_quantization_backend
from .tensors import changes

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Checksum = tuple[torch.dtype, list[int]]
"""A checksum of a weight's bits, in order, however it is laid out."""


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
        self._merged: tuple[int, int] | None = None
        self._checksum: Checksum | None = None
        self._stored: Any
        self.parameter = weight if shared and backend is None else None
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

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or a file: the merged weight is another tensor there, noted where this one is the
        merged."""
        return {**self.__dict__, "_merged": None, "_noted": self.is_same_tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        noted = state.pop("_noted")
        self.__dict__.update(state)
        if noted and self.backend is None:
            self._merged = self._tensor_now()

    def note_merged(self) -> None:
        """Remember the merged weight, which the base layer has now, so that `is_as_merged` tells."""
        # no weak reference, which would keep torch from exchanging the weight; of another tensor, its values tell
        self._merged = None if self.backend else self._tensor_now()
        self._checksum = self._checksum_now()

    @property
    def is_as_merged(self) -> bool:
        """Whether the base layer has the merged weight still, bit for bit; also where nothing tells."""
        return self._checksum is None or self._checksum == self._checksum_now()

    @property
    def is_written_to(self) -> bool:
        """Whether the merged weight has been written to since, as an optimizer and `load_state_dict` do.

        Not so: writing through `.data`, and another tensor in its place, as where a model is moved.
        """
        if self._merged is None:
            return False
        parameter, written = self._tensor_now()
        return parameter == self._merged[0] and written != self._merged[1]

    @property
    def is_same_tensor(self) -> bool:
        """Whether the base layer has the parameter that was merged, and nobody wrote to it but through `.data`; of a
        quantised one nothing tells."""
        return self.backend is not None or (self._merged is not None and self._merged == self._tensor_now())

    @property
    def merged_dtype(self) -> torch.dtype | None:
        """The dtype of the merged weight; None where nothing tells."""
        return self._checksum[0] if self._checksum else None

    def _tensor_now(self) -> tuple[int, int]:
        weight: Any = self.base_layer.weight
        return id(weight), changes(weight)

    def _checksum_now(self) -> Checksum | None:
        base: Any = self.base_layer
        if self.backend is None:
            return checksum(base.weight)
        if self.backend.backend_name == "hqq":
            return None  # merging makes another layer of it
        if self.backend.backend_name == "bnb 4bit":  # whose scales change a little at the first call on some CPUs
            return checksum(unpacked(base.weight)[0])
        if self.backend.backend_name == "bnb 8bit":
            return checksum(base.weight.data)
        return checksum(dequantized(base, self.backend))

    def weight(self) -> Tensor:
        """The weight, dequantised, where it was kept."""
        if self.backend is None:
            kept: Tensor = self._stored.weight
            return kept
        return dequantized(self._stored, self.backend)

    def restore(self, layer: Any) -> None:
        """Give it back to the base layer of `layer`; dequantised where that has been dequantised since."""
        if is_dequantized(layer.get_base_layer(), self.backend):
            weight = layer.get_base_layer().weight
            weight.data = self.weight().to(weight)
            return
        if self._stored is self.base_layer:
            layer.base_layer = self.base_layer
            return
        base: Any = self.base_layer
        if self.parameter is not None:
            # while every module that shares it was merged, no module had it, to be moved and cast with the model
            self.parameter.data = self.parameter.data.to(base.weight)
            base.weight = self.parameter
        elif self.backend is None:
            base.weight.data = self._stored.weight.to(device=base.weight.device, dtype=base.weight.dtype)
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


def is_dequantized(base_layer: nn.Module, backend: QuantizationBackend | None) -> bool:
    """Whether a base layer that was quantised, and that `backend` gave access to, has been dequantised since."""
    if backend is None:
        return False
    of_torchao = getattr(backend, "get_apply_tensor_subclass", None)
    return resolve_quantization_backend(base_layer, get_apply_tensor_subclass=of_torchao) is None


def dequantized(base_layer: Any, backend: QuantizationBackend) -> Tensor:
    """The weight of a quantised layer, as its forward pass uses it. Changes nothing.

    PEFT dequantises no 4-bit weight that bitsandbytes has packed for a CPU; see `unpacked`.
    """
    state = getattr(getattr(base_layer, "weight", None), "quant_state", None)
    if state is None or _as_loaded(state):
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


def _as_loaded(state: Any) -> bool:
    """Whether bitsandbytes has neither packed the weight of this quantisation state for a CPU nor unpacked it."""
    return not getattr(state, "packing_format_for_cpu", False) and getattr(state.absmax, "ndim", 1) == 1


def checksum(weight: Tensor) -> Checksum | None:
    """The `Checksum` of a weight; None on the meta device, where it has no values."""
    if weight.is_meta:
        return None
    bits = weight.detach().view(_BITS[weight.element_size()]).flatten()
    return weight.dtype, torch.stack([part.sum(dtype=torch.int64) for part in bits.chunk(64)]).tolist()


def _to_cpu(value: Any, copied: bool = False) -> Any:
    if value.device.type == "cpu":
        return value.clone() if copied else value
    return value.to("cpu")


def parameter_like(weight: nn.Parameter, data: Tensor) -> nn.Parameter:
    """A parameter of its own with these values."""
    return nn.Parameter(data, requires_grad=weight.requires_grad)


def rounding(exact: Tensor, original: Tensor, stored: Tensor) -> float:
    """|stored - exact| / |exact - original|: what share of an update requantising has cost (Frobenius norms)."""
    update = torch.linalg.vector_norm(exact - original)
    lost = torch.linalg.vector_norm(stored.to(exact) - exact)
    return float(lost / update) if update > 0 else 0.0


def warn_of_rounding(found: Iterable[float | None]) -> None:
    """Say what `rounding` has found in the layers of a merge; None is of layers that are not quantised."""
    lost = [one for one in found if one is not None]
    if lost:
        warnings.warn(
            f"Merging into quantised weights quantises them again: that rounding is {min(lost):.0%} to "
            f"{max(lost):.0%} of the size of the update, over {len(lost)} layers. To keep all of it, merge "
            "into the dequantised base (with bitsandbytes: model.dequantize(), and then the merge), or serve the "
            "exported LoRA beside the quantised base.",
            stacklevel=3,
        )
