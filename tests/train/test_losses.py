"""Losses over all examples of a step: the mean of what counts, whatever the step is divided into."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aurora_lora.deploy.inputs import IGNORED
from aurora_lora.train.losses import binary_loss, mean_loss, per_item, squared_errors


def halves(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, items: int) -> Tensor:
    """The loss of six examples, in two parts."""
    parts = [loss({"logits": logits[rows]}, labels[rows], items) for rows in (slice(0, 3), slice(3, 6))]
    return sum(parts, start=torch.zeros(()))


def test_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(mean_loss({"logits": logits}, labels), expected)
    torch.testing.assert_close(halves(mean_loss, logits, labels, 6), expected)
    labels[5] = IGNORED  # fills a place of the last step
    expected = functional.cross_entropy(logits[:5], labels[:5])
    torch.testing.assert_close(halves(mean_loss, logits, labels, 5), expected)


def test_squared_error() -> None:
    logits, labels = torch.randn(6, 1), torch.randn(6)
    expected = functional.mse_loss(logits[:, 0], labels)
    torch.testing.assert_close(mean_loss({"logits": logits}, labels), expected)
    labels[5] = IGNORED
    expected = functional.mse_loss(logits[:5, 0], labels[:5])
    torch.testing.assert_close(halves(mean_loss, logits, labels, 5), expected)


def test_binary_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.randint(2, (6, 3)).float()
    expected = functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(binary_loss({"logits": logits}, labels), expected)
    labels[5] = IGNORED
    expected = functional.binary_cross_entropy_with_logits(logits[:5], labels[:5])
    torch.testing.assert_close(halves(binary_loss, logits, labels, 15), expected)


def test_what_does_not_count_has_no_gradient() -> None:
    errors, labels = torch.tensor([3.0, torch.inf, -2.0], requires_grad=True), torch.tensor([1.0, IGNORED, 1.0])
    squares = squared_errors(errors, labels)
    assert squares.tolist() == [9, 0, 4]
    squares.sum().backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == [6, 0, -4]


@pytest.mark.parametrize(("counted", "items"), [(4, 4), (torch.tensor([True, False, True, True]), 3)])
def test_items_are_those_of_the_step_or_else_of_the_batch(counted: Any, items: int) -> None:
    assert per_item(torch.tensor(12.0), counted, None) == 12 / items
    assert per_item(torch.tensor(12.0), counted, 6) == 2
    assert per_item(torch.tensor(12.0), counted, torch.tensor(6)) == 2
