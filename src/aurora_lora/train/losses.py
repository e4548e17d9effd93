"""Losses over all examples of a step, whatever it is divided into: Trainer's `compute_loss_func`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ..deploy.inputs import IGNORED


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy, or squared error for a single output, over all examples of a step.

    Args:
        outputs: the model's, with logits (batch, classes) or (batch, 1).
        labels: (batch,); `IGNORED` where an example does not count.
        num_items_in_batch: examples of the whole step, over accumulated batches and all processes.
    """
    logits = outputs["logits"].float()
    if logits.shape[-1] == 1:
        total = squared_errors(logits.squeeze(-1) - labels.float(), labels).sum()
    else:
        total = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return per_item(total, labels.numel(), num_items_in_batch)


def binary_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Binary cross-entropy, over all labels of all examples of a step.

    Args:
        outputs: the model's, with logits (batch, labels).
        labels: (batch, labels), 1 or 0; `IGNORED` where an example does not count.
        num_items_in_batch: labels of the whole step, over accumulated batches and all processes.
    """
    losses = binary_cross_entropy_with_logits(outputs["logits"].float(), labels.clamp(min=0.0), reduction="none")
    total = torch.where(labels == IGNORED, 0.0, losses).sum()
    return per_item(total, labels.numel(), num_items_in_batch)


def squared_errors(errors: Tensor, labels: Tensor) -> Tensor:
    """The squares of errors, 0 where the label is `IGNORED`; of the labels' shape."""
    return torch.where(labels == IGNORED, 0.0, errors).square()


def per_item(total: Tensor, counted: Tensor | int, num_items_in_batch: Tensor | int | None) -> Tensor:
    """A sum over the items of a batch, divided by the number of items.

    Args:
        total: the sum.
        counted: how many items the batch has, or a mask of them.
        num_items_in_batch: how many the whole step has; None, outside of training, divides by those of the batch.
    """
    if num_items_in_batch is not None:
        return total / num_items_in_batch
    return total / (counted.sum() if isinstance(counted, Tensor) else counted)
