"""Methods that train some of the model's own weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import BaseUse, Method, Options, TaskType, check_names
from .parameters import is_head, keep_trained_in_float32

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PlainMethod(Method):
    """A method that trains some of the model's own weights and adds none.

    Args:
        trains: whether to train a parameter of the body, by its name. The head is always trained.
        use: of the pretrained weights.
    """

    trains: Callable[[str], bool]
    use: BaseUse = "trained"

    @property
    def base_use(self) -> BaseUse:
        return self.use

    def checked(self, options: Options) -> dict[str, Any]:
        check_names(options, ())
        return {}

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_head(model, name) or self.trains(name))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"{self.name} has nothing to train in a {type(model).__name__}: it has no new head")
        keep_trained_in_float32(model)
        return model

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        self._check_form(form)
        return model  # type: ignore[return-value]
