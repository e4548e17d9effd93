"""What autograd keeps of one training step, counted on a model without weights.

The model is one of the meta device (or, within `FakeTensorMode`, one of fake tensors): its forward pass computes
shapes and no numbers. Attention counts as a fused kernel, which keeps its inputs, its output and the logarithms of the
softmax's sums, not the attention matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...meanwhile import meanwhile


class SavedTensors:
    """Counts the bytes that autograd keeps, by block, each tensor once and without the model's own.

    Args:
        model: what is run while the count is on.
        blocks: its modules that gradient checkpointing would recompute.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.held: list[Tensor] = [*model.parameters(), *model.buffers()]  # so that no identity is given twice
        self.seen = {_storage(tensor) for tensor in self.held}
        self.outside, self.inputs = 0, 0
        self.blocks: list[int] = []
        self._hooks: list[Any] = []
        self._inside = False
        for module in blocks:
            self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count forward passes within this context; the model's hooks go with it."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for hook in self._hooks:
                hook.remove()

    def bytes(self, checkpointing: bool) -> int:
        """All that is kept; with checkpointing, the blocks' inputs and the largest block in place of the blocks."""
        if checkpointing:
            return self.outside + self.inputs + max(self.blocks, default=0)
        return self.outside + sum(self.blocks)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        self.inputs += given.numel() * given.element_size()
        self.blocks.append(0)
        self._inside = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = False

    def _pack(self, tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in self.seen:
            self.seen.add(storage)
            self.held.append(tensor)
            size = tensor.untyped_storage().nbytes()
            if self._inside:
                self.blocks[-1] += size
            else:
                self.outside += size
        return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def to_fake(model: nn.Module) -> None:
    """Give a model of the meta device fake tensors of the CPU in place of its own. Call it within `FakeTensorMode`."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = tensor, fake
                own[name] = made[id(tensor)][1]  # type: ignore[assignment]


class _Fused(torch.autograd.Function):
    """Attention by shapes alone: what a fused kernel allocates and keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    kind = query.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    out: Tensor = _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


def fused_attention() -> AbstractContextManager[None]:
    """Within this context, PyTorch's attention computes no numbers and keeps what a fused kernel would keep."""
    return meanwhile([nn.functional], scaled_dot_product_attention=_attention)
