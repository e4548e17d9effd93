"""Numbers to learn, standardised while a model learns them, and put into its head when it has: AdamW moves a weight by
about the learning rate a step, so that it never reaches a price or a year."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..deploy.inputs import plain_model
from ..methods.parameters import head_modules
from .losses import per_item, squared_errors

AS_THEY_ARE = "as they are"
"""How labels are trained that no head can give standardised."""


@dataclass(frozen=True)
class LabelScale:
    """What a model learns of a label y: (y - mean) / deviation.

    Args:
        mean: of the training labels; 0 where the head has no bias to hold it.
        deviation: their standard deviation; without a bias the root of their mean square; 1 where that is 0.
    """

    mean: float
    deviation: float
    in_float64: bool = False
    """Whether labels are standardised in float64: those that float32 does not hold, such as the days of a calendar."""

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Squared error of the standardised labels, over all examples of a step.

        Args:
            outputs: the model's, with logits (batch, 1).
            labels: (batch,), in their own units; `IGNORED` where an example does not count.
            num_items_in_batch: as for `losses.mean_loss`.
        """
        wanted = (labels.double() if self.in_float64 else labels.float()).sub(self.mean).div(self.deviation).float()
        errors = outputs["logits"].float().squeeze(-1) - wanted
        return per_item(squared_errors(errors, labels).sum(), labels.numel(), num_items_in_batch)

    def in_label_units(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (batch, 1) for the metrics: Trainer's `preprocess_logits_for_metrics`."""
        return (logits.double() if self.in_float64 else logits.float()) * self.deviation + self.mean

    @torch.no_grad()
    def fold(self, layer: nn.Linear) -> None:
        """Let the output layer of a trained model give label units."""
        layer.weight.copy_(layer.weight.double() * self.deviation)
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() * self.deviation + self.mean)


def mean_and_deviation(labels: Sequence[float]) -> tuple[float, float]:
    """Summed exactly, so that a run that goes on elsewhere has the same."""
    mean = math.fsum(labels) / len(labels)
    return mean, math.sqrt(math.fsum((label - mean) ** 2 for label in labels) / len(labels))


def held_by_float32(labels: Sequence[float]) -> bool:
    """Whether float32 holds each label exactly."""
    exact = np.asarray(labels, dtype=np.float64)
    return bool(np.array_equal(exact, exact.astype(np.float32)))


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The linear layer of one output that the head of a plain or a PEFT model ends in; None where none can be told."""
    plain = plain_model(model)
    found = []
    for name in head_modules(plain):
        for path, module in plain.get_submodule(name).named_modules():
            is_output = isinstance(module, nn.Linear) and module.out_features == 1
            untrained = "original_module" in path.split(".")  # the copy in PEFT's wrapper
            if is_output and module.weight.is_floating_point() and not untrained:
                found.append(module)
    return found[0] if len(found) == 1 else None


def compute_in_float32(layer: nn.Linear) -> None:
    """Let a layer give float32 under autocast: bfloat16 has 8 bits, too few for a year, and float16 ends at 65,504."""
    layer.register_forward_hook(_in_float32)


def _in_float32(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    if output.dtype == torch.float32 or layer.weight.dtype != torch.float32:
        return output
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float(), layer.weight, layer.bias)
