"""Methods that train the model's own weights: BitFit (Ben Zaken et al., ACL 2022), a linear probe, all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import BaseUse, Method, TaskType
from .parameters import is_head, keep_trained_in_float32

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PlainMethod(Method):
    """A method that trains some of the model's own weights and adds none.

    Args:
        trained: a pattern of the names of the body's parameters that are. The head is always trained.
        use: of the pretrained weights.
    """

    trained: str
    use: BaseUse = "trained"

    @property
    def base_use(self) -> BaseUse:
        return self.use

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        body = {name for name, _ in model.named_parameters() if re.fullmatch(self.trained, name)}
        if self.use == "trained" and all(is_head(model, name) for name in body):  # it would be a linear probe
            raise ValueError(f"bitfit trains the biases, and {type(model).__name__} has none: use another method.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_head(model, name) or name in body)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"{self.name} has nothing to train in a {type(model).__name__}: it has no new head")
        keep_trained_in_float32(model)
        return model

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        self._check_form(form)
        return model  # type: ignore[return-value]


BITFIT = PlainMethod(name="bitfit", trained=r"(.*\.)?bias")
LINEAR_PROBE = PlainMethod(
    name="linear-probe",
    trained="",
    use="frozen",
)
FULL = PlainMethod(name="full", trained=".*")
