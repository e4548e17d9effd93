"""A module of the model with something added to it, and the low-rank update that most methods add."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import FormError, NotFiniteError
from ..finite import is_finite
from ..tuner.linear import linear_shape
from .base import Options
from .linear import Linear, is_plain_linear, matrix


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
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        self.r: int = options["r"]
        self.alpha: float = options["alpha"]
        self.dropout = nn.Dropout(options["dropout"])
        self.A = nn.Parameter(torch.empty(self.r, d_in, dtype=dtype, device=weight.device))
        self.B = nn.Parameter(torch.zeros(d_out, self.r, dtype=dtype, device=weight.device))
        kaiming(self.A)

    @property
    def scaling(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.r

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The update of the output, (..., d_out), for the input x (..., d_in)."""

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """dW (d_out, d_in) with `forward(x) = dW x` in evaluation.

        Raises:
            FormError: there is none.
        """

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """dW as left (d_out, r) times right (r, d_in); None for an update that has no such factors."""
        return None


class WeightUpdate(Update):
    """An update that is a whole matrix, `dW x`: made at each call, in O(r d_out d_in) time and O(d_out d_in) memory."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.dropout(x), self.delta_weight())


def kaiming(weight: Tensor) -> None:
    """LoRA's initialisation of A: U(-1 / sqrt(d_in), 1 / sqrt(d_in))."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
