"""How quantised layers store their weight: on which grid, and how codes on a grid are written."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from dataclasses import replace
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
    """The weight (d_out, d_in) of a quantised linear layer, read and written as codes on a grid.

    Args:
        base_layer: the layer.
        backend: PEFT's access to it.
    """

    def __init__(self, base_layer: Any, backend: QuantizationBackend) -> None:
        self.base_layer = base_layer
        self.backend = backend

    @property
    def dtype(self) -> torch.dtype | None:
        """What the layer computes in, if that is fixed."""
        return getattr(self.base_layer, "compute_dtype", None)

    def dense(self) -> Tensor:
        """The weight that it holds, dequantised, in float32."""
        return dequantized(self.base_layer, self.backend).float()

    @abstractmethod
    def grid(self) -> Grid:
        """The grid of the weight that it holds."""

    @abstractmethod
    def fitted(self, weight: Tensor) -> Grid:
        """The grid on which the format itself would round this weight."""

    def storable(self, grid: Grid) -> Grid:
        """The grid nearest to this one that the format can store."""
        return grid

    def chosen(self, weight: Tensor, S: Tensor, inputs: InputMoment) -> tuple[Tensor, Grid]:
        """Codes and their grid, held or fitted for each block, for which E|(W_q - W) x|^2 is small.

        Args:
            weight: W, (d_out, d_in).
            S: E[x x^T], (d_in, d_in).
            inputs: the same, ordered and factored.
        """
        grid = self.storable(better_grid(weight, self.grid(), self.fitted(weight), S.diagonal()))
        return round_to_moment(weight, inputs, grid), grid

    @abstractmethod
    def stored(self, codes: Tensor, grid: Grid) -> nn.Parameter:
        """A weight for the layer, of these codes (d_out, d_in) on this grid, which is storable."""

    def put(self, weight: nn.Parameter) -> None:
        """Let the layer hold such a weight."""
        self.base_layer.weight = weight


class Bnb4Bit(Format):
    """NF4 and FP4 of bitsandbytes: 16 levels, and a scale for each block of the flattened weight."""

    def __init__(self, base_layer: Any, backend: QuantizationBackend) -> None:
        super().__init__(base_layer, backend)
        _, self.state = unpacked(base_layer.weight)
        self.levels = torch.unique(self.state.code.float())

    def grid(self) -> Grid:
        return self._grid(self.state)

    def fitted(self, weight: Tensor) -> Grid:
        grid = self.grid()
        return self.storable(replace(grid, scale=grid.blocks(weight.abs()).amax(1)))

    def storable(self, grid: Grid) -> Grid:
        return self._grid(self._state_with(grid))

    def _grid(self, state: Any) -> Grid:
        if not state.nested:
            return Grid(self.levels, state.absmax.float(), state.blocksize)
        bnb: Any = importlib.import_module("bitsandbytes.functional")
        scale = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
        return Grid(self.levels, scale.float(), state.blocksize)

    def _state_with(self, grid: Grid) -> Any:
        """The layer's quantisation state, with the scales of a grid."""
        state = copy.copy(self.state)
        if torch.equal(grid.scale, self.grid().scale):
            return state
        if not state.nested:
            state.absmax = grid.scale.to(state.absmax.dtype)
            return state
        bnb: Any = importlib.import_module("bitsandbytes.functional")
        state.offset = grid.scale.mean()
        state.absmax, state.state2 = bnb.quantize_blockwise(grid.scale - state.offset, blocksize=state.state2.blocksize)
        return state

    def stored(self, codes: Tensor, grid: Grid) -> nn.Parameter:
        table = self.state.code.float()
        nibbles = torch.stack([(table == level).nonzero()[0, 0] for level in self.levels]).to(torch.uint8)
        flat = nibbles[codes.reshape(-1)]
        flat = nn.functional.pad(flat, (0, len(flat) % 2))
        packed = (flat[0::2] << 4) | flat[1::2]
        weight = copy.copy(self.base_layer.weight)
        weight.data = packed.view(weight.quant_storage).view(-1, 1)
        weight.quant_state = self._state_with(grid)
        return weight  # type: ignore[no-any-return]

    def put(self, weight: Any) -> None:
        super().put(weight)
        self.base_layer.quant_state = weight.quant_state


class Bnb8Bit(Format):
    """LLM.int8() of bitsandbytes: a scale for each row, 127 levels on either side of 0."""

    LARGEST = 127

    def _grid(self, largest: Tensor) -> Grid:
        levels = torch.arange(-self.LARGEST, self.LARGEST + 1, dtype=torch.float32, device=largest.device)
        return Grid(levels, largest.float() / self.LARGEST, self.base_layer.in_features)

    def grid(self) -> Grid:
        scale = self.base_layer.state.SCB
        return self._grid(self.base_layer.weight.SCB if scale is None else scale)

    def fitted(self, weight: Tensor) -> Grid:
        return self._grid(weight.abs().amax(1))

    def stored(self, codes: Tensor, grid: Grid) -> nn.Parameter:
        data = (codes - self.LARGEST).to(torch.int8)
        largest = grid.scale * self.LARGEST
        kind: Any = type(self.base_layer.weight)
        weight: nn.Parameter = kind(data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=largest)
        return weight

    def put(self, weight: nn.Parameter) -> None:
        super().put(weight)
        self.base_layer.state.reset_grads()


class TorchAo(Format):
    """Integers of torchao: a scale and a zero point for each block of a row."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight before it was quantised."""
        found: torch.dtype = self.base_layer.weight.dtype
        return found

    @staticmethod
    def reads(weight: Any) -> bool:
        """Whether the codes of the tensor can be told from its scales."""
        if not all(hasattr(weight, name) for name in ("qdata", "scale", "block_size")) or weight.dim() != 2:
            return False
        if getattr(weight, "act_pre_scale", None) is not None or getattr(weight, "reduce_range", False):
            return False
        codes = weight.qdata
        return bool(codes.dtype == torch.int8 and codes.shape == weight.shape and weight.block_size[0] == 1)

    @staticmethod
    def _least(weight: Any) -> int:
        """The least code: -8 of int4, -128 of int8."""
        bits = int(str(getattr(weight, "target_dtype", torch.int8)).removeprefix("torch.int"))
        return -(1 << (bits - 1))

    def _read(self, weight: Any) -> Grid:
        least = self._least(weight)
        levels = torch.arange(least, -least, dtype=torch.float32, device=weight.qdata.device)
        zero = getattr(weight, "zero_point", None)
        zero = None if zero is None else zero.reshape(-1).float()
        return Grid(levels, weight.scale.reshape(-1).float(), int(weight.block_size[1]), zero)

    def grid(self) -> Grid:
        return self._read(self.base_layer.weight)

    def fitted(self, weight: Tensor) -> Grid:
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(self.base_layer.weight.dtype), requires_grad=False)
        self.backend.set_base_weight(SimpleNamespace(get_base_layer=lambda: layer), layer.weight)
        return self._read(layer.weight)

    def stored(self, codes: Tensor, grid: Grid) -> nn.Parameter:
        old: Any = self.base_layer.weight
        names, context = old.__tensor_flatten__()
        held = {name: getattr(old, name) for name in names}
        held["qdata"] = (codes + self._least(old)).to(torch.int8)
        held["scale"] = grid.scale.to(old.scale.dtype).reshape(old.scale.shape)
        if grid.zero is not None:
            held["zero_point"] = grid.zero.to(old.zero_point.dtype).reshape(old.zero_point.shape)
        return nn.Parameter(type(old).__tensor_unflatten__(held, context, old.shape, old.stride()), requires_grad=False)


def format_of(base_layer: Any, backend: QuantizationBackend) -> Format | None:
    """How a quantised linear layer stores its weight; None where codes cannot be written."""
    if backend.backend_name == "bnb 4bit":
        return Bnb4Bit(base_layer, backend)
    if backend.backend_name == "bnb 8bit":
        return Bnb8Bit(base_layer, backend)
    if backend.backend_name == "torchao" and TorchAo.reads(base_layer.weight):
        return TorchAo(base_layer, backend)
    return None


Quantization = Literal["nf4", "fp4", "int8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""The formats of bitsandbytes that a weight can be put into."""

BLOCK = 64
"""Consecutive entries with one scale, in 4 bits: what bitsandbytes takes by default."""


def check_quantization(name: str) -> None:
    """Raise a UserError for an unknown format, or where bitsandbytes is missing."""
    if name not in QUANTIZATIONS:
        raise UserError(f"quantization '{name}' is not one of {', '.join(QUANTIZATIONS)}")
    with extra("quantized"):
        importlib.import_module("bitsandbytes")


def format_for(name: str, weight: Tensor) -> Format:
    """The format in which bitsandbytes holds this weight, with its default settings. Changes nothing.

    Args:
        name: one of `QUANTIZATIONS`.
        weight: (d_out, d_in), in float32.
    """
    backend: Any = None  # of a layer that is only read and rounded
    if name == "int8":
        state = SimpleNamespace(SCB=weight.abs().amax(1))
        return Bnb8Bit(SimpleNamespace(in_features=weight.shape[1], state=state), backend)
    bnb: Any = importlib.import_module("bitsandbytes.functional")
    data, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=name)
    return Bnb4Bit(SimpleNamespace(weight=SimpleNamespace(data=data, quant_state=state)), backend)


def name_of(found: Format) -> str:
    """How the format of a layer is called: one of `QUANTIZATIONS`, or "torchao"."""
    if isinstance(found, Bnb4Bit):
        return str(found.state.quant_type)
    return "int8" if isinstance(found, Bnb8Bit) else "torchao"
