"""What autograd keeps, counted: each storage once, by block, also of tensors without numbers."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from aurora_lora.lab.saved_tensors import count_saved

ONE = 4 * 8 * 10
"""Bytes of what a layer below keeps."""


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_by_block(device: str) -> None:
    """Each linear layer keeps its input, and each tanh its output; on the meta device all addresses are 0."""
    blocks = [nn.Sequential(nn.Linear(10, 10), nn.Tanh()) for _ in range(3)]
    model = nn.Sequential(nn.Linear(10, 10), *blocks).to(device)
    x = torch.empty(8, 10, device=device).requires_grad_()
    kept = count_saved(lambda: model(x), model.parameters(), blocks)
    assert (kept.outside, kept.blocks, kept.inputs) == (ONE, (2 * ONE, ONE, ONE), 3 * ONE)  # others: a block's output
    assert kept.bytes() == 5 * ONE
    assert kept.bytes(checkpointing=True) == 6 * ONE
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_and_empty_tensors_and_own_ones(device: str) -> None:
    x, weight, nothing = (torch.empty(rows, 10, device=device).requires_grad_() for rows in (8, 10, 0))

    def products() -> list[Tensor]:
        return [x @ weight.T, x[:4] @ weight, x.T[:, :3] @ x[:3], nothing @ weight, nothing[:, :3] * nothing[:, 3:6]]

    assert count_saved(products).bytes() == ONE + 400
    assert count_saved(products, [weight[:2]]).bytes() == ONE
    assert count_saved(products, [weight, x]).bytes() == 0


def test_what_is_gone_is_not_kept() -> None:
    x = torch.randn(8, 10, requires_grad=True)

    def scaled() -> Tensor:
        norm = x.exp().exp().sum().detach()  # saves two outputs, for nothing
        return x * norm

    assert count_saved(scaled).bytes() == 4  # the norm


def test_what_was_counted_is_freed() -> None:
    """An output that its own node keeps, as of exp, is no circle that nothing frees."""

    class Mark:
        pass

    marks = []

    def forward() -> Tensor:
        out = torch.randn(8, 10, requires_grad=True).exp()
        mark = out.grad_fn.metadata["mark"] = Mark()  # goes with the node
        marks.append(weakref.ref(mark))
        return out

    assert count_saved(forward).bytes() == ONE
    assert marks[0]() is None
