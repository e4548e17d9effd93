"""Methods that replace modules of the model by adapted ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import FormError
from .adapted_module import AdaptedLinear, Update
from .base import Method, Options, TaskType
from .linear import Linear, is_linear, untie_adapted
from .options import Fields, check
from .parameters import is_head, keep_trained_in_float32
from .targets import lora_targets, merge_adapted, replace, target_paths


@dataclass(frozen=True)
class InjectionMethod(Method):
    """A method that freezes the body and adds something to some of its modules.

    Args:
        fields: the options.
        refusal: why the trained model cannot be merged; None if it can, exactly.
    """

    fields: Fields
    refusal: str | None = None

    def checked(self, options: Options) -> dict[str, Any]:
        return check(options, self.fields)

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_head(model, name))
        self.inject(model)
        keep_trained_in_float32(model)
        return model

    @abstractmethod
    def inject(self, model: nn.Module) -> None:
        """Replace the targets in a frozen model by adapted ones.

        Raises:
            ValueError: the targets are not in the model, or of a kind that cannot be adapted.
        """

    def check_mergeable(self) -> None:
        if self.refusal is not None:
            raise FormError(f"{self.name} cannot be merged: {self.refusal}.")

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        self._check_form(form)
        self.check_mergeable()
        untie_adapted(model)
        merge_adapted(model)
        return model  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class UpdateMethod(InjectionMethod):
    """A method that adds an update to the output of linear layers, by default those that LoRA adapts.

    Args:
        update: the class of the update.
    """

    update: Callable[[Linear, Options], Update]

    def inject(self, model: nn.Module) -> None:
        paths = target_paths(model, self.options, lora_targets(model))
        for path in paths:
            module = model.get_submodule(path)
            if not is_linear(module):
                raise ValueError(
                    f"target_modules: {path} is a {type(module).__name__}; {self.name} adapts torch.nn.Linear and "
                    "transformers' Conv1D."
                )
        for path in paths:
            replace(model, path, self._adapted)

    def _adapted(self, layer: Any) -> nn.Module:
        return AdaptedLinear(layer, self.update(layer, self.options))
