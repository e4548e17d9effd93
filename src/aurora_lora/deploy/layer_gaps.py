"""What each linear form loses in each layer of AuroRA, summed over the inputs that reach it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..forms import STATIC, FormName
from ..tuner import AuroraLayer, active_layers
from .calibrate import ROUNDING, row_pieces, to_float64
from .inputs import Runner, input_geometry, watched_inputs


@dataclass(frozen=True)
class LayerGap:
    """One adapter of one layer, in one linear form, over the inputs x that reach it in the trained model."""

    layer: str
    """The layer's path in the plain model."""
    adapter: str
    form: str
    relative_error: float
    """|B sigma(Ax) - B M x| / |B sigma(Ax)|, both norms over all inputs: 0 is exact, 1 is as bad as leaving it out."""
    explained_variance: float
    """1 - E|B sigma(Ax) - B M x|^2 / E|B sigma(Ax) - its mean|^2; negative where the mean alone would do better.

    Where B sigma(Ax) is the same for all inputs, but for rounding (one vector, equal ones), there is no variance to
    explain: 1 if the form is exact, else NaN.
    """


class FormSums:
    """The squared errors of each layer's linear maps, summed over the inputs that reach it."""

    def __init__(self, model: nn.Module, runner: Runner, forms: list[FormName]) -> None:
        self.runner = runner
        self.layers: dict[tuple[str, str], _LayerSums] = {}
        for path, layer, name in active_layers(model):
            # an embedding merges exactly, and so does an adapter that was trained static
            if layer.has_forms and layer.aurora_config[name].train_form != STATIC:
                self.layers[path, name] = _LayerSums(layer, name, forms)

    def watching(self) -> AbstractContextManager[None]:
        """While entered, the inputs that reach the layers are taken in."""
        return watched_inputs((entry.layer, partial(self._add, entry)) for entry in self.layers.values())

    def _add(self, entry: _LayerSums, x: Tensor) -> None:
        for vectors, groups in self.runner.grouped_pieces(entry.layer, x):
            entry.add(vectors, groups)

    def result(self) -> tuple[LayerGap, ...]:
        """The gaps of the layers that inputs reached; others must have B = 0.

        Raises:
            CalibrationError: a trained layer that no input reached, or whose adapter gives no finite numbers.
        """
        trained = dict.fromkeys(path for (path, _), entry in self.layers.items() if entry.n == 0 and entry.gram.any())
        if trained:
            raise self.runner.not_reached(list(trained))
        return tuple(gap for (path, name), entry in self.layers.items() if entry.n for gap in entry.result(path, name))


class _LayerSums:
    """The sums of one adapter of one layer. |B v|^2 = v^T (B^T B) v is taken in the rank space.

    Of a convolution with groups, each group has its own rows of B, which are all that its vectors meet.
    """

    def __init__(self, layer: AuroraLayer, name: str, forms: list[FormName]) -> None:
        self.layer, self.name = layer, name
        factors = {form: layer.get_factors(name, form) for form in forms}
        self.matrices = {form: to_float64(lora_A) for form, (lora_A, _) in factors.items()}
        B = to_float64(factors[forms[0]][1])  # s B: the scale drops out of every ratio
        base: Any = layer.get_base_layer()
        rows = B.view(base.groups if input_geometry(layer) else 1, -1, B.shape[1])
        self.gram = rows.transpose(1, 2) @ rows  # (groups, r, r)
        self.n = 0
        self.power = 0.0
        self.total = B.new_zeros(len(rows), B.shape[1])
        self.errors = dict.fromkeys(forms, 0.0)

    def _square(self, v: Tensor, groups: Tensor) -> float:
        """|B v|^2, summed over v (n, r), each of its group (n,)."""
        if len(self.gram) == 1:
            return float(((v @ self.gram[0]) * v).sum())
        columns = zip(self.gram.unbind(2), v.unbind(1), strict=True)  # (n, r, r) would be a lot of memory
        return float((sum(column[groups] * values[:, None] for column, values in columns) * v).sum())

    def add(self, x: Tensor, groups: Tensor | None) -> None:
        """Take in vectors x (n, d_in), of a convolution with the group (n,) of each."""
        x = x.to(self.layer.aurora_A[self.name].weight.dtype)  # what the layer computes with
        sigma = to_float64(self.layer.sigma(self.name, self.layer.hidden_values(self.name, x)))  # (n, r)
        self.n += len(sigma)
        of = torch.zeros_like(sigma[:, 0], dtype=torch.int64) if groups is None else groups.to(sigma.device)
        self.power += self._square(sigma, of)
        self.total.index_add_(0, of, sigma)
        for rows in row_pieces(len(x), max(x.shape[1], sigma.shape[1])):
            inputs = to_float64(x[rows])
            for form, M in self.matrices.items():
                self.errors[form] += self._square(sigma[rows] - inputs @ M.T, of[rows])

    def result(self, path: str, name: str) -> list[LayerGap]:
        if not math.isfinite(self.power):
            raise CalibrationError(f"The adapter of {path} gives no finite numbers: is the model or a batch broken?")
        n = self.n / len(self.total)  # of each group
        variance = self.power - n * self._square(
            self.total / n, torch.arange(len(self.total), device=self.total.device)
        )
        return [
            LayerGap(path, name, form, _ratio(error, self.power) ** 0.5, _explained(error, variance, self.power))
            for form, error in self.errors.items()
        ]


def _explained(error: float, variance: float, power: float) -> float:
    """The explained share of a variance, from sums of squares; see `LayerGap.explained_variance`."""
    rounding = ROUNDING**2 * power
    if variance > rounding:
        return 1 - _ratio(error, variance)
    return 1.0 if error <= rounding else math.nan


def _ratio(error: float, power: float) -> float:
    """Non-negative up to rounding; an adapter that does nothing (B = 0) loses nothing. NaN of what is not finite."""
    if not math.isfinite(error) or not math.isfinite(power):
        return math.nan
    return max(error, 0.0) / power if power > 0 else 0.0
