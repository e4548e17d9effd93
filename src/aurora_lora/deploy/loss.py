"""The loss whose gradients are looked at: `loss(model, batch)`, or the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..values import short
from .batch import IGNORED
from .predictions import next_tokens, predicts_next_token, shifts_labels, tensor_of

Loss = Callable[[Any, Any], Tensor]


def chosen_loss(loss: Loss | None, model: nn.Module, of_texts: bool = False) -> Loss:
    """The loss that was given, or else the model's own; of texts that of each next token.

    Raises:
        TypeError: the loss is no function, or the texts are for a model that predicts something else.
    """
    if loss is not None:
        if not callable(loss):
            raise TypeError(f"loss={short(loss)} is not allowed: it must be a function of (model, batch).")
        return loss
    if of_texts and not predicts_next_token(model):
        raise TypeError(
            "The texts of a datasets.Dataset have no labels, which only a causal language model can do without: give "
            "loss=, or a DataLoader of batches with labels."
        )
    return loss_of_texts if of_texts else own_loss


def loss_of_texts(model: Any, batch: Any) -> Tensor:
    """The model's own loss of each next token."""
    labels = next_tokens(batch, batch["input_ids"].device)
    if labels is not None and not shifts_labels(model):
        labels = torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)), dim=1)
    return own_loss(model, {**batch, "labels": labels})


def own_loss(model: Any, batch: Any) -> Tensor:
    """The loss that the model computes from the labels in a batch."""
    outputs = model(**batch) if isinstance(batch, dict) else None
    if (found := tensor_of(outputs, "loss")) is None:
        raise CalibrationError("The model gives no loss: labels are needed in the batches, or loss(model, batch).")
    return found


def scalar(value: Any) -> Tensor:
    """What a loss gave, which must be one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise CalibrationError(f"loss must return a tensor with one element, and gave {found}.")
    return value
