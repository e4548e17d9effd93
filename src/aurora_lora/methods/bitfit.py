"""BitFit (Ben Zaken et al., ACL 2022): the biases alone are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import TaskType
from .parameters import is_head
from .plain import PlainMethod

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BitFitMethod(PlainMethod):
    """Refuses a model without biases, where it would be a linear probe."""

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        if not any(self.trains(name) and not is_head(model, name) for name, _ in model.named_parameters()):
            raise ValueError(f"bitfit trains the biases, and {type(model).__name__} has none: use another method.")
        return super().apply(model, task_type, kept)


BITFIT = BitFitMethod(
    name="bitfit",
    description="The biases alone",
    trains=lambda name: name.rsplit(".", 1)[-1] == "bias",
)
