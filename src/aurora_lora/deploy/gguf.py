"""GGUF files: how their tensors are quantised, and which layers of Transformers they are."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MergeError, UserError, one_line
from ..extras import extra
from ..files import new_file
from ..ops.rounding import Grid, InputMoment, round_to_moment
from .formats import Change, Format, StoredModel
from .inputs import plain_model

SEARCHED = 16
"""How many scales of a K-quant's sub-block are tried."""


@dataclass(frozen=True)
class GgufGrid(Grid):
    """A grid that a tensor of a file can have.

    Args:
        head: (blocks of the file, bytes): the scales as they are stored.
    """

    head: Tensor = field(kw_only=True)


class GgufFormat(Format):
    """A quantised tensor of a GGUF file, whose dequantised values a layer of Transformers holds.

    Args:
        layer: the base layer.
        rows: (d_out, bytes of a row), uint8: what the file holds, in the order of the layer's outputs.
    """

    entries: ClassVar[int]
    """Weights in a block of the file."""
    levels: ClassVar[Tensor]
    sub_block: ClassVar[int]
    """Consecutive weights with one scale."""

    def __init__(self, layer: Any, rows: Tensor) -> None:
        super().__init__(layer)
        self.rows = rows

    @staticmethod
    @abstractmethod
    def split(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """The head (n, bytes) and the codes (n, entries) of blocks (n, bytes)."""

    @staticmethod
    @abstractmethod
    def join(head: Tensor, codes: Tensor) -> Tensor:
        """What `split` has taken apart."""

    @classmethod
    @abstractmethod
    def scales(cls, head: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and offset (n, sub-blocks) of each sub-block: a weight is `scale * level - offset`."""

    @classmethod
    @abstractmethod
    def fit(cls, blocks: Tensor) -> Tensor:
        """The head (n, bytes) on which the format itself would round these weights (n, entries)."""

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self.layer.weight.shape.numel() // self.entries
        return self.split(rows.reshape(blocks, -1))

    def _grid(self, head: Tensor) -> GgufGrid:
        scale, offset = self.scales(head)
        zero = None
        if offset is not None:
            tiny = torch.finfo(torch.float32).tiny
            zero = (offset / torch.where(scale.abs() < tiny, tiny, scale)).reshape(-1)
        return GgufGrid(self.levels.to(head.device), scale.reshape(-1), self.sub_block, zero, head=head)

    def values(self, rows: Tensor) -> Tensor:
        """(d_out, d_in), in float32: what these rows of bytes stand for."""
        head, codes = self._parts(rows)
        scale, offset = self.scales(head)
        found = self.levels.to(head.device)[codes].view(len(codes), -1, self.sub_block) * scale.unsqueeze(-1)
        if offset is not None:
            found -= offset.unsqueeze(-1)
        return found.view(self.layer.weight.shape)

    @property
    def dtype(self) -> Any:
        return self.layer.weight.dtype

    def dense(self) -> Tensor:
        return self.values(self.rows)

    def grid(self) -> GgufGrid:
        return self._grid(self._parts(self.rows)[0])

    def codes(self) -> Tensor:
        return self._parts(self.rows)[1].view(self.layer.weight.shape)

    def fitted(self, weight: Tensor) -> GgufGrid:
        return self._grid(self.fit(weight.reshape(-1, self.entries).float()))

    def pack(self, codes: Tensor, grid: Grid) -> Tensor:
        assert isinstance(grid, GgufGrid)
        blocks = self.join(grid.head, codes.reshape(-1, self.entries).to(torch.uint8))
        return blocks.view(self.rows.shape)

    def held(self) -> Tensor:
        return self.rows

    def put(self, packed: Tensor) -> None:
        self.layer.weight.data = self.values(packed).to(self.layer.weight)

    def chosen(self, weight: Tensor, S: Tensor, inputs: InputMoment) -> tuple[Tensor, Grid]:
        heads, costs = [], []
        for grid in (self.grid(), self.fitted(weight)):
            error = (grid.dequantised(grid.round(weight)) - weight).square_() * S.diagonal()
            heads.append(grid.head)
            costs.append(error.view(-1, self.entries).sum(1, keepdim=True))
        grid = self._grid(torch.where(costs[1] < costs[0], heads[1], heads[0]))
        return round_to_moment(weight, inputs, grid), grid


# ------------------------------------------------------------------ bytes


def _half(head: Tensor, start: int) -> Tensor:
    """(n, 1), in float32: the float16 that stands there."""
    return head[:, start : start + 2].contiguous().view(torch.float16).float()


def _bytes(values: Tensor) -> Tensor:
    """(n, 2): float16 numbers (n, 1) as bytes."""
    return values.clamp(-65504, 65504).half().contiguous().view(torch.uint8)


def _low_first(packed: Tensor) -> Tensor:
    """(n, 2, k): the lower halves of bytes (n, k), and the upper ones."""
    return torch.stack((packed & 15, packed >> 4), 1)


def _bits(packed: Tensor) -> Tensor:
    """(n, k, 8): the bits of bytes (n, k), the lowest first."""
    return packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1


def _from_bits(bits: Tensor) -> Tensor:
    """Bytes (n, k) of bits (n, k, 8)."""
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


# ------------------------------------------------------------------ blocks of 32


class Blocks(GgufFormat):
    """Blocks of 32 with a scale in float16, and an offset where the levels start at 0."""

    entries = sub_block = 32
    bits: ClassVar[int]
    with_offset: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        least = 0 if cls.with_offset else -(1 << (cls.bits - 1))
        cls.levels = torch.arange(least, least + (1 << cls.bits), dtype=torch.float32)

    @classmethod
    def scales(cls, head: Tensor) -> tuple[Tensor, Tensor | None]:
        return _half(head, 0), -_half(head, 2) if cls.with_offset else None

    @classmethod
    def fit(cls, blocks: Tensor) -> Tensor:
        if cls.with_offset:
            least = blocks.amin(1, keepdim=True)
            scale = (blocks.amax(1, keepdim=True) - least) / (len(cls.levels) - 1)
            return torch.cat((_bytes(scale), _bytes(least)), 1)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        return _bytes(largest.abs() / cls.levels[-1] if cls.bits == 8 else largest / cls.levels[0])


class _Nibbles(Blocks):
    bits = 4
    with_offset = False

    @classmethod
    def split(cls, blocks: Tensor) -> tuple[Tensor, Tensor]:
        at = 4 if cls.with_offset else 2
        head, high, low = blocks[:, :at], blocks[:, at:-16], _low_first(blocks[:, -16:]).flatten(1)
        return head, (low if cls.bits == 4 else low | _bits(high).flatten(1) << 4).int()

    @classmethod
    def join(cls, head: Tensor, codes: Tensor) -> Tensor:
        low = codes & 15
        high = [] if cls.bits == 4 else [_from_bits((codes >> 4).view(-1, 4, 8))]
        return torch.cat((head, *high, low[:, :16] | low[:, 16:] << 4), 1)


class Q4_0(_Nibbles):  # noqa: N801 (the names are those of the format)
    name = "Q4_0"


class Q4_1(_Nibbles):  # noqa: N801
    name = "Q4_1"
    with_offset = True


class Q5_0(_Nibbles):  # noqa: N801
    name = "Q5_0"
    bits = 5


class Q5_1(_Nibbles):  # noqa: N801
    name = "Q5_1"
    bits = 5
    with_offset = True


class Q8_0(Blocks):  # noqa: N801
    name = "Q8_0"
    bits = 8
    with_offset = False

    @staticmethod
    def split(blocks: Tensor) -> tuple[Tensor, Tensor]:
        return blocks[:, :2], (blocks[:, 2:] ^ 128).int()  # two's complement, from -128

    @staticmethod
    def join(head: Tensor, codes: Tensor) -> Tensor:
        return torch.cat((head, codes ^ 128), 1)


# ------------------------------------------------------------------ K-quants


def _searched(weights: Tensor, levels: Tensor, offsets: bool) -> tuple[Tensor, Tensor]:
    """Scale and offset (n, sub-blocks) for which the nearest values cost least, of some that are tried.

    Args:
        weights: (n, sub-blocks, entries).
        levels: (K,).
        offsets: whether a weight is `scale * level - offset`, with an offset of at least 0, or `scale * level`.
    """
    best = [weights.new_full(weights.shape[:2], torch.inf)] + [weights.new_zeros(weights.shape[:2]) for _ in range(2)]
    for scale, offset in _tries(weights, levels, offsets):
        codes = ((weights + offset) / torch.where(scale == 0, 1, scale)).round().clamp(levels[0], levels[-1])
        if offsets:  # the least squares of both, given the codes
            centred = codes - codes.mean(-1, keepdim=True)
            slope = (centred * weights).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True).clamp(min=1e-9)
            offset = (slope * codes.mean(-1, keepdim=True) - weights.mean(-1, keepdim=True)).clamp(min=0)
        squares = codes.square().sum(-1, keepdim=True).clamp(min=1e-9)
        scale = (codes * (weights + offset)).sum(-1, keepdim=True) / squares
        cost = (scale * codes - offset - weights).square().sum(-1)
        better = cost < best[0]
        for place, found in enumerate((cost, scale.squeeze(-1), offset.expand_as(scale).squeeze(-1))):
            best[place] = torch.where(better, found, best[place])
    return best[1], best[2]


def _tries(weights: Tensor, levels: Tensor, offsets: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and offsets (n, sub-blocks, 1), around those that just hold all weights."""
    if offsets:
        offset = (-weights.amin(-1, keepdim=True)).clamp(min=0)
        widest = (weights.amax(-1, keepdim=True) + offset) / levels[-1]
    else:
        largest = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
        offset, widest = torch.zeros_like(largest), largest / levels[0]
    for shrunk in torch.linspace(0.75, 1.05, SEARCHED).tolist():
        yield widest * shrunk, offset


class _WithMinima(GgufFormat):
    """Q4_K and Q5_K: eight sub-blocks of 32, whose scales and offsets have 6 bits each."""

    entries, sub_block = 256, 32

    @classmethod
    def scales(cls, head: Tensor) -> tuple[Tensor, Tensor | None]:
        first, second, both = head[:, 4:8], head[:, 8:12], head[:, 12:16]
        scale = torch.cat((first & 63, both & 15 | first >> 2 & 48), 1)
        offset = torch.cat((second & 63, both >> 4 | second >> 2 & 48), 1)
        return _half(head, 0) * scale, _half(head, 2) * offset

    @classmethod
    def fit(cls, blocks: Tensor) -> Tensor:
        found = _searched(blocks.view(-1, 8, 32), cls.levels.to(blocks), True)
        stored, codes = [], []
        for each in found:
            unit = _bytes(each.clamp(min=0).amax(1, keepdim=True) / 63)
            divisor = _half(unit, 0)
            stored.append(unit)
            codes.append((each / torch.where(divisor == 0, 1, divisor)).round().clamp(0, 63).to(torch.uint8))
        scale, offset = codes
        first = scale[:, :4] | scale[:, 4:] >> 4 << 6
        second = offset[:, :4] | offset[:, 4:] >> 4 << 6
        return torch.cat((*stored, first, second, scale[:, 4:] & 15 | (offset[:, 4:] & 15) << 4), 1)


class Q4_K(_WithMinima):  # noqa: N801
    name = "Q4_K"
    levels = torch.arange(16, dtype=torch.float32)

    @staticmethod
    def split(blocks: Tensor) -> tuple[Tensor, Tensor]:
        low = _low_first(blocks[:, 16:].reshape(-1, 32))
        return blocks[:, :16], low.view(-1, 256).int()

    @staticmethod
    def join(head: Tensor, codes: Tensor) -> Tensor:
        low = codes.view(-1, 4, 2, 32)
        return torch.cat((head, (low[:, :, 0] | low[:, :, 1] << 4).flatten(1)), 1)


class Q5_K(_WithMinima):  # noqa: N801
    name = "Q5_K"
    levels = torch.arange(32, dtype=torch.float32)

    @staticmethod
    def split(blocks: Tensor) -> tuple[Tensor, Tensor]:
        low = _low_first(blocks[:, 48:].reshape(-1, 32)).view(-1, 256)
        high = _bits(blocks[:, 16:48]).transpose(1, 2).flatten(1)
        return blocks[:, :16], (low | high << 4).int()

    @staticmethod
    def join(head: Tensor, codes: Tensor) -> Tensor:
        high = _from_bits((codes >> 4).view(-1, 8, 32).transpose(1, 2))
        low = (codes & 15).view(-1, 4, 2, 32)
        return torch.cat((head, high, (low[:, :, 0] | low[:, :, 1] << 4).flatten(1)), 1)


class Q6_K(GgufFormat):  # noqa: N801
    """Sixteen sub-blocks of 16, whose scales have 8 bits."""

    name = "Q6_K"
    entries, sub_block = 256, 16
    levels = torch.arange(-32, 32, dtype=torch.float32)

    @staticmethod
    def split(blocks: Tensor) -> tuple[Tensor, Tensor]:
        low = _low_first(blocks[:, :128].reshape(-1, 64)).view(-1, 256)
        quarters = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 4, 1)
        high = blocks[:, 128:192].reshape(-1, 1, 32) >> quarters & 3
        return blocks[:, 192:], (low | high.reshape(-1, 256) << 4).int()

    @staticmethod
    def join(head: Tensor, codes: Tensor) -> Tensor:
        low, high = (codes & 15).view(-1, 2, 64), (codes >> 4).view(-1, 2, 4, 32)
        low = (low.view(-1, 2, 2, 64)[:, :, 0] | low.view(-1, 2, 2, 64)[:, :, 1] << 4).flatten(1)
        high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
        return torch.cat((low, high.flatten(1), head), 1)

    @classmethod
    def scales(cls, head: Tensor) -> tuple[Tensor, Tensor | None]:
        return _half(head, 16) * head[:, :16].contiguous().view(torch.int8), None

    @classmethod
    def fit(cls, blocks: Tensor) -> Tensor:
        scale, _ = _searched(blocks.view(-1, 16, 16), cls.levels.to(blocks), False)
        largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
        unit = _bytes(largest / -128)
        divisor = _half(unit, 0)
        codes = (scale / torch.where(divisor == 0, 1, divisor)).round().clamp(-128, 127)
        return torch.cat((codes.to(torch.int8).view(torch.uint8), unit), 1)


GGUF_FORMATS: dict[str, type[GgufFormat]] = {
    kind.name: kind for kind in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)
}
"""The quantised types of tensors that can be merged into, by their names in the format."""

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TYPES = (*GGUF_FORMATS, *FLOATS)
"""The types of tensors that can be merged into."""


# ------------------------------------------------------------------ files


class Place(NamedTuple):
    """Where a layer's weight stands in a file: the reader's tensor, and which output of the layer (d_out,) each of its
    rows is."""

    tensor: Any
    order: Tensor


class GgufFile(StoredModel):
    """The tensors of a GGUF file, and the layers of Transformers that they are.

    Raises:
        UserError: it is no whole GGUF file, or the `gguf` package is missing.
    """

    def __init__(self, path: Path) -> None:
        with extra("train"):
            import gguf
        if not path.is_file():
            raise UserError(f"{path} is no file")
        self.path = path
        self.places: dict[str, Place] = {}
        try:
            reader = gguf.GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
            arch = str(reader.fields["general.architecture"].contents())
            blocks = int(reader.fields[f"{arch}.block_count"].contents())
            split = reader.fields.get("split.count")
            parts = 1 if split is None else int(split.contents())
        except Exception as error:  # the reader raises of many kinds
            raise UserError(f"{path} is no GGUF file of a model, or not whole: {one_line(error)}") from error
        if parts > 1:
            raise UserError(f"{path} is one part of a model in {parts}: join them (llama-gguf-split)")
        known = next((one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), None)
        if known is None:
            raise UserError(f"{path}: the gguf package does not know the architecture {arch!r}")
        self.names = gguf.get_tensor_name_map(known, blocks)

    def format_of(self, model: Any, path: str, layer: nn.Module) -> Any:
        name = self.names.get_name(f"{path}.weight", (".weight",)) or ""
        tensor = self.tensors.get(name)
        if not isinstance(layer, nn.Linear):
            raise MergeError(f"{path}: merge_stored merges linear layers, not {type(layer).__name__}")
        if tensor is None:
            why = f"no tensor {name}: is its weight tied to another one?" if name else "no tensor for it"
            raise MergeError(f"{path}: {self.path.name} has {why}")
        kind = tensor.tensor_type.name
        if kind not in TYPES:
            raise MergeError(f"{path}: {name} is {kind}, and merge_stored writes {', '.join(TYPES)}")
        if tuple(reversed(tensor.shape.tolist())) != tuple(layer.weight.shape):
            raise MergeError(
                f"{path}: {name} in {self.path.name} has {tensor.shape.tolist()} weights, and the model "
                f"{list(reversed(layer.weight.shape))}: it is another model's file"
            )
        rows = (
            torch.from_numpy(tensor.data.copy()).view(torch.uint8).view(len(layer.weight), -1).to(layer.weight.device)
        )
        values = rows.view(FLOATS[kind]).float() if kind in FLOATS else GGUF_FORMATS[kind](layer, rows).dense()
        for order in _orders(plain_model(model), len(layer.weight)):
            if torch.equal(values.to(layer.weight.dtype), layer.weight[order.to(layer.weight.device)]):
                self.places[path] = Place(tensor, order)
                own = rows[torch.argsort(order).to(rows.device)]
                return None if kind in FLOATS else GGUF_FORMATS[kind](layer, own)
        raise MergeError(
            f"{path}: the model's weight is not {name} of {self.path.name}: load the model from this very file "
            f"(from_pretrained({str(self.path.parent)!r}, gguf_file={self.path.name!r}))"
        )

    def write(self, output: Path, changes: Mapping[str, Change]) -> None:
        contents: list[tuple[Any, Tensor]] = []
        for path, (weight, bias) in changes.items():
            place = self.places[path]
            if weight is not None:
                kind = place.tensor.tensor_type.name
                rows = weight.to(FLOATS[kind]).view(torch.uint8) if kind in FLOATS else weight
                contents.append((place.tensor, rows.cpu()[place.order]))
            if bias is not None:
                contents.append((self._bias(path, place), bias.cpu().float()[place.order].view(torch.uint8)))
        with new_file(output) as partial:
            shutil.copyfile(self.path, partial)
            with partial.open("r+b") as copy:
                for tensor, content in contents:
                    copy.seek(int(tensor.data_offset))
                    copy.write(content.contiguous().numpy().tobytes())

    def _bias(self, path: str, place: Place) -> Any:
        """The tensor of a layer's bias, in float32.

        Raises:
            MergeError: the file has none.
        """
        tensor = self.tensors.get(name := place.tensor.name.removesuffix("weight") + "bias")
        if tensor is None or tensor.tensor_type.name != "F32":
            raise MergeError(f"{path}: {self.path.name} has no {name} in F32 for the bias that the adapter changes")
        return tensor


def _orders(model: Any, outputs: int) -> list[Tensor]:
    """The orders (d_out,) in which files have a layer's outputs: as they are, or with the halves of each head
    interleaved, for the rotary embeddings of llama.cpp."""
    config = model.config.get_text_config()
    found = [torch.arange(outputs)]
    for heads in {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}:
        if heads and outputs % (2 * heads) == 0:
            found.append(found[0].view(heads, 2, -1).transpose(1, 2).reshape(-1))
    return found
