"""What autograd keeps for the backward pass, in bytes: of tensors with numbers, fake ones and those of the meta device.

Kept is what the result of a forward pass still needs: not what was saved for a result that is gone, as of the norms of
DoRA, which are detached.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Saved:
    """Bytes that are kept; storages that tensors share count once, where they come first.

    Args:
        outside: outside the blocks.
        blocks: in each block, in the order of the computation.
        inputs: of the inputs of all blocks.
    """

    outside: int
    blocks: tuple[int, ...]
    inputs: int

    def bytes(self, checkpointing: bool = False) -> int:
        """Bytes that are kept; with checkpointing, the blocks' inputs and the largest block in place of the blocks."""
        if checkpointing:
            return self.outside + self.inputs + max(self.blocks, default=0)
        return self.outside + sum(self.blocks)


def count_saved(function: Callable[[], Any], own: Iterable[Tensor] = (), blocks: Iterable[nn.Module] = ()) -> Saved:
    """What autograd keeps for the backward pass of what `function` returns.

    Args:
        function: the forward pass.
        own: tensors that are not counted, such as a model's parameters and buffers.
        blocks: modules that gradient checkpointing would recompute.
    """
    record = _Record()
    hooks = [hook for block in blocks for hook in record.follow(block)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(record.pack, lambda packed: packed.tensor):
            result = function()
    finally:
        for hook in hooks:
            hook.remove()
    saved = record.count(own)
    del result  # until here it holds all that it needs, and nothing else does
    return saved


@dataclass(eq=False)
class _Packed:
    """A tensor in the place where autograd keeps it: it is gone when that is."""

    tensor: Tensor
    block: int | None


class _Record:
    """What was saved in a forward pass, and in which block."""

    def __init__(self) -> None:
        self._packed: list[weakref.ref[_Packed]] = []
        self._inputs: list[int] = []
        self._is_inside = False

    def follow(self, block: nn.Module) -> tuple[Any, Any]:
        """Hooks that tell when a block is computed."""
        return block.register_forward_pre_hook(self._enter, with_kwargs=True), block.register_forward_hook(self._leave)

    def pack(self, tensor: Tensor) -> _Packed:
        # detached, or an output that its own node keeps would never be freed
        packed = _Packed(tensor.detach(), len(self._inputs) - 1 if self._is_inside else None)
        self._packed.append(weakref.ref(packed))
        return packed

    def count(self, own: Iterable[Tensor]) -> Saved:
        """What is still there of it.

        Storages are told apart by what they are; their addresses are 0 where there are no numbers.
        """
        seen = {_identity(tensor) for tensor in own}
        outside, blocks = 0, [0] * len(self._inputs)
        for packed in filter(None, (reference() for reference in self._packed)):
            if (storage := _identity(packed.tensor)) not in seen:
                seen.add(storage)
                size = packed.tensor.untyped_storage().nbytes()
                if packed.block is None:
                    outside += size
                else:
                    blocks[packed.block] += size
        return Saved(outside, tuple(blocks), sum(self._inputs))

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        self._inputs.append(given.numel() * given.element_size())
        self._is_inside = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._is_inside = False


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
