"""How quantised weights are stored: on which grid, and how codes on a grid are read and written."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..extras import extra
from ..ops.rounding import Grid, InputMoment, better_grid, round_to_moment
from ..tuner.merging import dequantized, unpacked
from ..tuner.peft_names import QuantizationBackend


class Format(ABC):
    """A quantised weight (d_out, d_in): codes on a `Grid` of levels, scales of blocks, and zero points.

    One more format is one more subclass in `FORMATS`: `holds` knows its weights, `grid` and `codes` read one, `fitted`
    is the grid that the format itself would choose, and `pack` writes codes. A format whose scales are quantised too,
    or shared by several blocks, says in `storable` which grid it stores.

    Args:
        layer: what holds the weight.
        backend: PEFT's access to it, where it has one.
    """

    def __init__(self, layer: Any, backend: QuantizationBackend | None = None) -> None:
        self.layer = layer
        self.backend = backend

    name: Any
    """What the format is called in reports."""
    is_fresh = False
    """Whether the weight is still in float, and is quantised even where no adapter changes it."""

    @staticmethod
    def holds(layer: Any, backend: QuantizationBackend) -> bool:
        """Whether the weight of a layer that PEFT has this access to is in this format; no layer holds one of files."""
        return False

    @property
    def dtype(self) -> Any:
        """What the layer computes in; None if that is not fixed."""
        return getattr(self.layer, "compute_dtype", None)

    def dense(self) -> Tensor:
        """The weight that is held, in float32, as the layer computes with it."""
        if self.backend is None:
            return self.grid().dequantised(self.codes())
        return dequantized(self.layer, self.backend).float()

    @abstractmethod
    def grid(self) -> Grid:
        """The grid of the weight that is held."""

    @abstractmethod
    def codes(self) -> Tensor:
        """(d_out, d_in): the codes that are held, on `grid`."""

    @abstractmethod
    def fitted(self, weight: Tensor) -> Grid:
        """The grid on which the format itself would round this weight."""

    def storable(self, grid: Grid) -> Grid:
        """The grid nearest to this one that the format can store."""
        return grid

    @abstractmethod
    def pack(self, codes: Tensor, grid: Grid) -> Any:
        """What the layer holds of these codes (d_out, d_in) on this grid, which is storable."""

    def held(self) -> Any:
        """What the layer holds, to be put back."""
        return self.layer.weight

    def put(self, packed: Any) -> None:
        """Let the layer hold it."""
        self.layer.weight = packed

    def chosen(self, weight: Tensor, S: Tensor, inputs: InputMoment) -> tuple[Tensor, Grid]:
        """Codes and their grid, held or fitted for each block, for which E|(W_q - W) x|^2 is small.

        Args:
            weight: W, (d_out, d_in).
            S: E[x x^T], (d_in, d_in).
            inputs: the same, ordered and factored.
        """
        grid = self.storable(better_grid(weight, self.grid(), self.fitted(weight), S.diagonal()))
        return round_to_moment(weight, inputs, grid), grid


Change = tuple[Any, Tensor | None]
"""What a layer is to hold: what its format packs, a float weight (d_out, d_in), or None where it stays; the bias."""


class StoredModel(ABC):
    """A base model on disk."""

    @abstractmethod
    def format_of(self, model: Any, path: str, layer: Any) -> Any:
        """How the weight of a linear layer is stored; None of a float type.

        Raises:
            MergeError: the layer has no weight of its own there, another one than the model, or one of a type that
                cannot be written.
        """

    @abstractmethod
    def write(self, output: Path, changes: Mapping[str, Change]) -> None:
        """Write a copy of the model with some layers, by path, changed."""


class Bnb4Bit(Format):
    """NF4 and FP4 of bitsandbytes: 16 levels, and a scale for each block of the flattened weight."""

    def __init__(self, layer: Any, backend: QuantizationBackend | None = None) -> None:
        super().__init__(layer, backend)
        _, self.state = unpacked(layer.weight)
        self.name = str(self.state.quant_type)
        self.levels = torch.unique(self.state.code.float())

    @staticmethod
    def holds(layer: Any, backend: QuantizationBackend) -> bool:
        return backend.backend_name == "bnb 4bit"

    def grid(self) -> Grid:
        return self._grid(self.state)

    def codes(self) -> Tensor:
        data = unpacked(self.layer.weight)[0].reshape(-1).view(torch.uint8)
        flat = torch.stack((data >> 4, data & 15), 1).view(-1)[: self.state.shape.numel()]
        return torch.searchsorted(self.levels, self.state.code.float()[flat.int()]).int().view(self.state.shape)

    def fitted(self, weight: Tensor) -> Grid:
        grid = self.grid()
        return self.storable(replace(grid, scale=grid.blocks(weight.abs()).amax(1)))

    def storable(self, grid: Grid) -> Grid:
        return self._grid(self._state_with(grid))

    def _grid(self, state: Any) -> Grid:
        scale = state.absmax
        if state.nested:
            scale = _bnb().dequantize_blockwise(state.absmax, state.state2) + state.offset
        return Grid(self.levels, scale.float(), state.blocksize)

    def _state_with(self, grid: Grid) -> Any:
        """The layer's quantisation state, with the scales of a grid."""
        state = copy.copy(self.state)
        if torch.equal(grid.scale, self.grid().scale):
            return state
        if not state.nested:
            state.absmax = grid.scale.to(state.absmax.dtype)
            return state
        state.offset = grid.scale.mean()
        blocks = state.state2.blocksize
        state.absmax, state.state2 = _bnb().quantize_blockwise(grid.scale - state.offset, blocksize=blocks)
        return state

    def pack(self, codes: Tensor, grid: Grid) -> Any:
        table = self.state.code.float()
        nibbles = torch.stack([(table == level).nonzero()[0, 0] for level in self.levels]).to(torch.uint8)
        flat = nibbles[codes.reshape(-1)]
        flat = nn.functional.pad(flat, (0, len(flat) % 2))
        packed: Any = copy.copy(self.layer.weight)
        packed.data = ((flat[0::2] << 4) | flat[1::2]).view(packed.quant_storage).view(-1, 1)
        packed.quant_state = self._state_with(grid)
        return packed

    def put(self, packed: Any) -> None:
        super().put(packed)
        self.layer.quant_state = packed.quant_state


class Bnb8Bit(Format):
    """LLM.int8() of bitsandbytes: a scale for each row, 127 levels on either side of 0."""

    LARGEST = 127
    name = "int8"

    @staticmethod
    def holds(layer: Any, backend: QuantizationBackend) -> bool:
        return backend.backend_name == "bnb 8bit"

    def _grid(self, largest: Tensor) -> Grid:
        levels = torch.arange(-self.LARGEST, self.LARGEST + 1, dtype=torch.float32, device=largest.device)
        return Grid(levels, largest.float() / self.LARGEST, self.layer.in_features)

    def _scales(self) -> Any:
        """The largest of each row, which a call moves from the weight to the state of the layer."""
        return self.layer.weight.SCB if self.layer.state.SCB is None else self.layer.state.SCB

    def _parameter(self, data: Tensor, scales: Tensor) -> Any:
        return type(self.layer.weight)(data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=scales)

    def grid(self) -> Grid:
        return self._grid(self._scales())

    def codes(self) -> Tensor:
        return torch.add(self.layer.weight.data.int(), self.LARGEST)

    def fitted(self, weight: Tensor) -> Grid:
        return self._grid(weight.abs().amax(1))

    def pack(self, codes: Tensor, grid: Grid) -> Any:
        return self._parameter((codes - self.LARGEST).to(torch.int8), grid.scale * self.LARGEST)

    def held(self) -> Any:
        return self._parameter(self.layer.weight.data, self._scales())

    def put(self, packed: Any) -> None:
        super().put(self._parameter(packed.data, packed.SCB))  # of its own: the first call takes the scales away
        self.layer.state.reset_grads()


class TorchAo(Format):
    """Integers of torchao: a scale and a zero point for each block of a row."""

    name = "torchao"

    @staticmethod
    def holds(layer: Any, backend: QuantizationBackend) -> bool:
        weight = layer.weight
        if backend.backend_name != "torchao" or not hasattr(weight, "qdata") or not hasattr(weight, "block_size"):
            return False
        if getattr(weight, "act_pre_scale", None) is not None or getattr(weight, "reduce_range", False):
            return False
        codes = weight.qdata
        return bool(codes.dtype == torch.int8 and codes.shape == weight.shape and weight.block_size[0] == 1)

    @property
    def dtype(self) -> Any:
        """The dtype of the weight before it was quantised."""
        return self.layer.weight.dtype

    @property
    def _least(self) -> int:
        """The least code: -8 of int4, -128 of int8."""
        bits = int(str(getattr(self.layer.weight, "target_dtype", torch.int8)).removeprefix("torch.int"))
        return -(1 << (bits - 1))

    def _grid(self, weight: Any) -> Grid:
        levels = torch.arange(self._least, -self._least, dtype=torch.float32, device=weight.qdata.device)
        zero = getattr(weight, "zero_point", None)
        zero = None if zero is None else zero.reshape(-1).float()
        return Grid(levels, weight.scale.reshape(-1).float(), int(weight.block_size[1]), zero)

    def grid(self) -> Grid:
        return self._grid(self.layer.weight)

    def codes(self) -> Tensor:
        return torch.sub(self.layer.weight.qdata.int(), self._least)

    def fitted(self, weight: Tensor) -> Grid:
        assert self.backend is not None
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(self.dtype), requires_grad=False)
        self.backend.set_base_weight(SimpleNamespace(get_base_layer=lambda: layer), layer.weight)
        return self._grid(layer.weight)

    def pack(self, codes: Tensor, grid: Grid) -> Any:
        old = self.layer.weight
        names, context = old.__tensor_flatten__()
        held = {name: getattr(old, name) for name in names}
        held["qdata"] = (codes + self._least).to(torch.int8)
        held["scale"] = grid.scale.to(old.scale.dtype).reshape(old.scale.shape)
        if grid.zero is not None:
            held["zero_point"] = grid.zero.to(old.zero_point.dtype).reshape(old.zero_point.shape)
        return nn.Parameter(type(old).__tensor_unflatten__(held, context, old.shape, old.stride()), requires_grad=False)


FORMATS: tuple[type[Format], ...] = (Bnb4Bit, Bnb8Bit, TorchAo)
"""The formats whose codes can be read and written."""


def format_of(layer: Any, backend: QuantizationBackend) -> Format | None:
    """How a quantised linear layer stores its weight; None where codes cannot be written."""
    return next((kind(layer, backend) for kind in FORMATS if kind.holds(layer, backend)), None)


Quantization = Literal["nf4", "fp4", "int8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""The formats of bitsandbytes that a weight can be put into."""

BLOCK = 64
"""Consecutive entries with one scale, in 4 bits: what bitsandbytes takes by default."""


def check_quantization(name: str, allowed: Sequence[str] = QUANTIZATIONS) -> None:
    """Raise a UserError for a format that is not allowed, or where its library is missing."""
    if name not in allowed:
        raise UserError(f"quantization '{name}' is not one of {', '.join(allowed)}")
    with extra("quantized"):
        importlib.import_module("bitsandbytes" if name in QUANTIZATIONS else "compressed_tensors")


def format_for(name: str, weight: Tensor) -> Format:
    """The format in which bitsandbytes holds this weight, with its default settings, to be read and rounded to.

    Args:
        name: one of `QUANTIZATIONS`.
        weight: (d_out, d_in), in float32.
    """
    if name == "int8":
        state = SimpleNamespace(SCB=weight.abs().amax(1))
        return Bnb8Bit(SimpleNamespace(in_features=weight.shape[1], state=state))
    data, state = _bnb().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=name)
    return Bnb4Bit(SimpleNamespace(weight=SimpleNamespace(data=data, quant_state=state)))


def _bnb() -> Any:
    return importlib.import_module("bitsandbytes.functional")
