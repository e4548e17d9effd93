"""The linear layers of a model that have active adapters, of any method: their weights, and their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MergeError, NotFiniteError
from ..finite import is_finite
from ..tuner import AuroraLayer
from ..tuner.linear import upright
from ..tuner.merging import check_takes_merge
from ..tuner.peft_names import TrainableTokensLayer, get_quantization_kwargs, resolve_quantization_backend
from .calibrate import Target
from .calibrate import input_moments as moments_of
from .formats import Format, format_for, format_of, name_of
from .inputs import Passes, Runner, output_embeddings, plain_model
from .merged_weight import bias_change, layers_with_adapters, merged_linear

OWN_FORMATS = "own formats"
"""Stands for the format of each layer, where a base has several."""


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear layer with active adapters of any method.

    Args:
        path: in the plain model.
        module: PEFT's layer.
        names: its active adapters.
        format: of its weight if that is quantised.
        stays: it is not quantised, and no merge quantises it.
    """

    path: str
    module: Any
    names: list[str]
    format: Format | None
    stays: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What the layer computes in; float32 of a quantised one that does not say."""
        found: torch.dtype | None
        found = self.module.get_base_layer().weight.dtype if self.format is None else self.format.dtype
        return found or torch.float32

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """W0, W = W0 + dW, (d_out, d_in), and the merged bias (d_out,) if there is one; in float32.

        Raises:
            MergeError, NotFiniteError: see `merge_gap`.
        """
        base = self.module.get_base_layer()
        held = base.weight.data.float() if self.format is None else self.format.dense()
        merged, bias = merged_linear(self.path, self.module, held, self.names)
        for what, value in (("weight", merged), ("bias", bias)):
            if value is not None and not is_finite(value):
                raise NotFiniteError(f"{self.path}: the merged {what} is not finite; the adapter seems to be broken.")
        return upright(base, held).contiguous(), upright(base, merged).contiguous(), bias

    def is_idle(self) -> bool:
        """Whether its adapters add nothing."""
        held, merged, bias = self.weights()
        return torch.equal(held, merged) and bias_change(self.module, bias) is None

    def in_dtype(self, dtype: torch.dtype | None, exact: Tensor) -> Tensor:
        """The weight (d_out, d_in) that a merge into a base of this dtype gives, rounded as the layer does."""
        dtype = dtype or self.dtype
        if isinstance(self.module, AuroraLayer) or dtype == torch.float32:
            return exact.to(dtype).float()
        base = self.module.get_base_layer()
        held = base.weight.data if self.format is None else self.format.dense()
        merged, _ = merged_linear(self.path, self.module, held.to(dtype), self.names)
        return upright(base, merged).contiguous()

    def format_named(self, name: str, exact: Tensor) -> Format | None:
        """Its own format if that is the one, or a new one for the merged weight; None where that is not quantised."""
        if self.stays:
            return None
        if self.format is not None and name in (name_of(self.format), OWN_FORMATS):
            return self.format
        return format_for(name, exact)


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """The layers of a model with active adapters; not the rows of embeddings that are trained as such
    (`trainable_token_indices`), of which a merge rounds nothing.

    Raises:
        AlreadyMergedError, CalibrationError: one is merged, or its adapters are switched off.
        MergeError: one whose merges cannot be measured.
    """
    found = list(layers_with_adapters(model, "merge_gap"))
    if found and all(isinstance(module, TrainableTokensLayer) for _, module, _ in found):
        raise MergeError(f"{found[0][0]}: only rows of embeddings are trained, of which a merge rounds nothing.")
    plain = plain_model(model)
    output = output_embeddings(plain)
    layers = [
        AdaptedLayer(path, module, names, _format(path, module, model))
        for path, module, names in found
        if not isinstance(module, TrainableTokensLayer)
    ]
    # where Transformers quantises a model it leaves the output layer as it is, and others that the user names
    partly = getattr(plain, "is_quantized", False) or any(layer.format is not None for layer in layers)
    return [
        replace(layer, stays=True) if layer.format is None and (partly or layer.module is output) else layer
        for layer in layers
    ]


def input_moments(
    layers: Mapping[str, AdaptedLayer], runner: Runner, data: Passes, max_memory: float
) -> Iterator[tuple[Tensor, list[tuple[AdaptedLayer, int]]]]:
    """E[x x^T] (d_in, d_in), with the layers that have these inputs, each with how many it saw; to round weights by.
    Layers that no input reached, and whose adapters add nothing, do not come.

    Args:
        layers: by path.
        runner: of the model.
        data: what to run it on.
        max_memory: see `calibrate.input_moments`.
    """
    targets = [Target(path, layer.module, is_idle=layer.is_idle) for path, layer in layers.items()]
    for together in moments_of(runner, targets, data, max_memory):
        yield together[0].mean(), [(layers[each.target.name], each.vectors) for each in together]


def held_format(path: str, module: Any, model: nn.Module, action: str) -> Format | None:
    """How the weight of a layer of PEFT is quantised; None where it is not.

    Args:
        path: names the layer in the error.
        module: PEFT's layer.
        model: that it is in.
        action: the function that asks, for the error.

    Raises:
        MergeError: in a format whose codes cannot be read and written, or see `check_takes_merge`.
        NotImplementedError: see `check_takes_merge`.
    """
    base: Any = module.get_base_layer()
    backend = resolve_quantization_backend(base, **get_quantization_kwargs(plain_model(model)))
    if backend is None:
        try:
            check_takes_merge(base, None)
        except (MergeError, NotImplementedError) as error:
            raise type(error)(f"{path}: {error}") from error
        return None
    if (found := format_of(base, backend)) is None:
        kind = type(getattr(base, "weight", base)).__name__
        raise MergeError(
            f"{path}: {action} does not know how {backend.backend_name} quantised its weight ({kind}). Serve the "
            "adapter beside it, or merge into the unquantised base model."
        )
    return found


def _format(path: str, module: Any, model: nn.Module) -> Format | None:
    """How a layer's weight is quantised, see `held_format`; raises for a layer whose merge cannot be measured."""
    if (held := held_format(path, module, model, "merge_gap")) is not None:
        return held
    base: Any = module.get_base_layer()
    if not isinstance(base, nn.Linear) and not hasattr(base, "nf"):
        raise MergeError(f"{path}: merge_gap measures merges of linear layers, not of {type(base).__name__}.")
    if base.weight.is_meta:
        raise MergeError(f"{path}: its weight is not in memory: load the whole model to measure merges.")
    return None
