"""Models without weights: a forward pass computes shapes and no numbers.

A model is one of the meta device, or, within `FakeTensorMode`, one of fake tensors. Attention counts as a fused kernel,
which keeps its inputs, its output and the logarithms of the softmax's sums, not the attention matrix.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ...temporary_attributes import temporary_attributes


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
    return temporary_attributes([nn.functional], scaled_dot_product_attention=_attention)
