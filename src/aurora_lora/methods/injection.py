"""Methods that replace modules of the model by adapted ones, and the low-rank update that most of them add."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from ..errors import FormError, NotFiniteError
from ..tuner.linear import linear_shape
from ..values import is_finite
from .base import Method, TaskType
from .options import Options
from .parameters import is_head, keep_trained_in_float32
from .targets import Linear, is_linear, is_plain_linear, lora_targets, matrix, target_paths, untie_adapted


class AdaptedModule(nn.Module):
    """A frozen module, `base_layer`, with trained parameters around it."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.train(base_layer.training)

    @property
    def weight(self) -> Any:
        """The base layer's: models ask for its dtype, T5's feed-forward for one."""
        return self.base_layer.weight

    def merged(self) -> nn.Module:
        """The base layer, changed so that it computes the same alone.

        Raises:
            FormError: no such layer exists.
        """
        raise FormError(f"{type(self).__name__} is not linear in its input: no weight of the base layer computes it.")


class AdaptedLinear(AdaptedModule):
    """`W0 x + b + s f(x)` for a linear layer, a method's update f and its scaling."""

    base_layer: Linear

    def __init__(self, base_layer: Linear, update: Update) -> None:
        super().__init__(base_layer)
        self.update: Update | None = update
        self._shared: tuple[Update, ...] = ()
        self.train(base_layer.training)

    @property
    def in_use(self) -> Update:
        """The layer's own update, or the one that it shares."""
        return self._shared[0] if self.update is None else self.update

    def share(self, update: Update) -> None:
        """Use another layer's update instead of the own one, which is dropped. The other layer owns the parameters."""
        self.update, self._shared = None, (update,)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) to (..., d_out), in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        update = self.in_use
        added: Tensor = update(x.to(update.A.dtype))
        return result + added.to(result.dtype)

    def merged(self) -> Linear:
        """The linear layer with `W0 + dW`, summed in at least float32 and rounded once.

        Raises:
            FormError: the update is not linear in x, or the base weight is quantised.
            NotFiniteError: the merged weight is not finite.
        """
        if not is_plain_linear(self.base_layer):
            raise FormError(
                f"A {type(self.base_layer).__name__} cannot be merged into: load the base model unquantised to merge."
            )
        weight = matrix(self.base_layer)
        with torch.no_grad():
            delta = self.in_use.delta_weight()
            total = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta
            if not is_finite(total):
                raise NotFiniteError("The merged weight is not finite: the adapter is broken.")
            weight.copy_(total)
        return self.base_layer


class Update(nn.Module):
    """What is added to a linear layer's output, from `A (r, d_in)` and `B (d_out, r)`.

    A starts Kaiming-uniform (sqrt 5) and B at 0, as in LoRA: the new adapter is a no-op.

    Args:
        base_layer: the linear layer; gives the shapes, the device and the precision (float32 at least).
        options: `r`, `alpha`, `dropout`, and the method's own.
    """

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__()
        weight = base_layer.weight
        d_out, d_in = linear_shape(base_layer)
        dtype = trained_dtype(weight)
        self.r: int = options["r"]
        self.alpha: float = options["alpha"]
        self.dropout = nn.Dropout(options["dropout"])
        self.A = nn.Parameter(torch.empty(self.r, d_in, dtype=dtype, device=weight.device))
        self.B = nn.Parameter(torch.zeros(d_out, self.r, dtype=dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.r

    def forward(self, x: Tensor) -> Tensor:
        """The update of the output, (..., d_out), for the input x (..., d_in)."""
        factors = self.factors()
        assert factors is not None  # or the method has a formula of its own
        return linear(linear(self.dropout(x), factors[1]), factors[0])

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """dW as left (d_out, r) times right (r, d_in), here s B and A; None for an update that has no such factors."""
        return self.scaling * self.B, self.A

    def delta_weight(self) -> Tensor:
        """dW (d_out, d_in) with `forward(x) = dW x` in evaluation.

        Raises:
            FormError: there is none.
        """
        factors = self.factors()
        if factors is None:
            raise FormError(f"{type(self).__name__}'s update is not linear in the layer's input: there is no dW.")
        return factors[0] @ factors[1]


class WeightUpdate(Update):
    """An update that is a whole matrix, `dW x`: made at each call, in O(r d_out d_in) time and O(d_out d_in) memory."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.dropout(x), self.delta_weight())

    def factors(self) -> None:
        return None


def trained_dtype(weight: Tensor) -> torch.dtype:
    """What is added beside a weight is in its precision, in float32 at least."""
    return torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, AdaptedModule]]:
    """The adapted modules of a model, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, AdaptedModule):
            yield path, module


@dataclass(frozen=True)
class InjectionMethod(Method):
    """A method that freezes the body and adds something to some of its modules.

    Args:
        refusal: why the trained model cannot be merged; None if it can, exactly.
    """

    refusal: str | None = None

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
        for path, module in list(adapted_modules(model)):
            try:
                plain = module.merged()
            except (FormError, NotFiniteError) as error:
                raise type(error)(f"{path}: {error}") from error
            model.set_submodule(path, plain)
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
            layer: Any = model.get_submodule(path)
            model.set_submodule(path, AdaptedLinear(layer, self.update(layer, self.options)))
