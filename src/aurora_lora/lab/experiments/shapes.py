"""A recipe's model without weights: its parameters, and what a step of its training keeps for the backward pass."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...data.loading import NO_CODE, cannot_load, check_attention
from ...deploy.calibrate import calibrated_layers
from ...deploy.gradients import frozen_weights
from ...deploy.inputs import output_embeddings
from ...deploy.moments import Target, moment_bytes
from ...errors import UserError
from ...methods import ParameterCounts, count_parameters, get_method
from ...methods.apply import apply_method, plain_method_errors
from ...methods.linear import is_linear
from ...methods.options import TARGETS
from ...methods.parameters import head_modules, is_in
from ...methods.start import ordinary
from ...methods.targets import check_modules, target_paths
from ...temporary_attributes import temporary_attributes
from ...train.kind_facts import FACTS
from ...train.models import positions
from ...train.precision import frozen_dtype
from ...train.recipe import ModelSection, Recipe
from ...tuner.naming import ALL_LINEAR
from ..saved_tensors import count_saved
from .architectures import architecture, image_tokens
from .fake_models import fused_attention, to_fake
from .text_lengths import Sizes

QUANTISED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a quantised weight: 4 bits have a scale in float32 for each 64 of them."""
TEXT = 64
"""Tokens of the texts that are counted with; what is kept grows in proportion."""
FEW = 4
"""Layers of the model that is counted with: the last stands for all. Some methods leave the first three out."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a model with a method on it.

    Args:
        params: how many are trained, outside and inside the head, and all.
        bytes: of all of them; where some are quantised, with the widest of these as it is computed with.
        multiplied: how many an example goes through; the look-up of an embedding is no work.
        calibration: bytes that calibrating the layer that needs most takes beside all of this; 0 where there is none.
    """

    params: ParameterCounts
    bytes: int
    multiplied: int
    calibration: int = 0


@dataclass(frozen=True)
class StepShapes:
    """Bytes that a step keeps for the backward pass: each a constant, and so much for each token.

    Args:
        outside: before and after the layers.
        layer: in one layer.
        entering: the input of one layer, all that is kept of it with gradient checkpointing.
    """

    outside: tuple[float, float]
    layer: tuple[float, float]
    entering: float


def weights(recipe: Recipe, sizes: Sizes | None = None) -> Weights:
    """The parameters of a recipe's model; with a budget, at most: as if it was used up, and each layer had a share.

    Args:
        recipe: of the run.
        sizes: of its data, where these are loaded.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    return _weights(_key(recipe, sizes), recipe.base.quantization)


def step_shapes(recipe: Recipe, sizes: Sizes | None) -> StepShapes:
    """What a step of a recipe's training keeps.

    Args:
        recipe, sizes: as for `weights`.

    Raises:
        UserError: as `weights`.
    """
    return _step_shapes(_key(recipe, sizes), recipe.training.precision)


def pretrained(recipe: Recipe) -> Any:
    """A recipe's model before its method is applied, without weights.

    Raises:
        UserError: the model is not known.
    """
    return _pretrained(_key(recipe, None))


@dataclass(frozen=True)
class _Key:
    """What decides on the shapes of a model."""

    model: ModelSection
    method: str
    options: str
    kind: str
    labels: int
    dtype: torch.dtype


def _key(recipe: Recipe, sizes: Sizes | None) -> _Key:
    options = json.dumps(recipe.method.options, sort_keys=True)
    task = recipe.task.definition
    labels = task.num_labels if sizes is None else sizes.labels
    model = ModelSection(name=recipe.model, revision=recipe.base.revision)
    return _Key(model, recipe.method.name, options, task.kind, labels, frozen_dtype(recipe))


def _pretrained(key: _Key, layers: int | None = None) -> Any:
    import transformers

    config = architecture(key.model)
    config.num_labels = key.labels
    if layers is not None:
        config.get_text_config().num_hidden_layers = layers
    with torch.device("meta"):
        try:
            check_attention(config)
            return getattr(transformers, FACTS[key.kind].auto).from_config(config, dtype=key.dtype, **NO_CODE)
        except ValueError as error:
            raise cannot_load("model", key.model.name, error) from error


def _adapted(key: _Key, base: Any, share: float = 1.0) -> nn.Module:
    """A model, or so large a share of it, with the method applied to it."""
    options = json.loads(key.options)
    with torch.device("meta"), plain_method_errors():
        method = get_method(key.method).bind(_at_its_budget(base, options, share))
        return apply_method(method, base, FACTS[key.kind].task_type)


def _quantised(base: Any) -> list[Tensor]:
    """The weights that are quantised where a model is: of its linear layers, but for the head and the output layer."""
    heads, output = head_modules(base), output_embeddings(base)
    return [
        module.weight
        for path, module in base.named_modules()
        if is_linear(module) and module is not output and not is_in(path, heads)
    ]


def _at_its_budget(base: nn.Module, options: dict[str, Any], share: float) -> dict[str, Any]:
    """Options with one rank in place of a budget, for all layers that can get some of it: about what that buys.

    Args:
        base: the model, or so large a share of it.
        options: of the method.
        share: of the model, and so of a budget that is a number.
    """
    budget = options.get("budget")
    if budget is None:
        return options
    check_modules(base, options)  # modules that are not there would be left out here
    paths = target_paths(base, options, ALL_LINEAR)
    widths = sum(weight.d_in + weight.d_out for path, weight in frozen_weights(base).items() if path in paths)
    others = {name: value for name, value in ordinary(options).items() if name not in TARGETS}
    return {**others, "target_modules": paths, "r": max(1, round(share * budget / widths))}


def _counts(model: nn.Module, budget: int | None) -> ParameterCounts:
    """A model's parameters (`count_parameters`); if there is a budget, with so many weights in A and B."""
    found = count_parameters(model)
    if budget is None:
        return found
    pairs = (one.numel() for name, one in model.named_parameters() if re.search(r"\.(lora|aurora)_[AB]\.", name))
    more = budget - sum(pairs)
    return replace(found, adapter=found.adapter + more, total=found.total + more)


@lru_cache(maxsize=256)
def _weights(key: _Key, quantization: str | None) -> Weights:
    base = _pretrained(key)
    narrow = {} if quantization is None else {id(weight): weight for weight in _quantised(base)}
    model = _adapted(key, base)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    used = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}  # a tied head is both
    parameters = list(model.parameters())
    size = sum(parameter.nbytes for parameter in parameters if id(parameter) not in narrow)
    if quantization is not None:
        size += math.ceil(QUANTISED[quantization] * sum(weight.numel() for weight in narrow.values()))
        size += max((weight.nbytes for weight in narrow.values()), default=0)
    return Weights(
        _counts(model, json.loads(key.options).get("budget")),
        size,
        sum(parameter.numel() for parameter in parameters if id(parameter) not in looked_up - used),
        max(map(_calibration, calibrated_layers(model)), default=0),
    )


def _calibration(layer: Target) -> int:
    return moment_bytes(layer) + 3 * 8 * layer.d_in**2


@lru_cache(maxsize=256)
def _step_shapes(key: _Key, precision: str) -> StepShapes:
    from torch._subclasses.fake_tensor import FakeTensorMode

    all_layers = int(architecture(key.model).get_text_config().num_hidden_layers)
    layers = min(FEW, all_layers)
    try:
        model = _adapted(key, _pretrained(key, layers), layers / all_layers)
    except UserError:  # the method names layers that are not there
        model = _adapted(key, _pretrained(key))
    log = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback where a model cannot be counted
    with FakeTensorMode(allow_non_fake_inputs=True), fused_attention(), temporary_attributes([log], disabled=True):
        to_fake(model.train())
        counted = [_count(model, examples, precision) for examples in (1, 2)]
    unit = image_tokens(_config(model)) or _text(_config(model))
    outside, layer = (_line([getattr(kept, name) for kept in counted], unit) for name in ("outside", "last"))
    return StepShapes(outside, layer, counted[0].entering / unit)


@dataclass(frozen=True)
class _Counted:
    outside: int
    last: int
    entering: float


def _count(model: nn.Module, examples: int, precision: str) -> _Counted:
    config = _config(model)
    if hasattr(config, "image_size"):
        inputs = {"pixel_values": torch.empty(examples, config.num_channels, config.image_size, config.image_size)}
    else:
        ids = torch.zeros(examples, _text(config), dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    own = (*model.parameters(), *model.buffers())
    # CPUs have no autocast to fp16; its shapes are those of bf16
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        kept = count_saved(lambda: model(**inputs), own, blocks(model))
    return _Counted(kept.outside, kept.blocks[-1], kept.inputs / len(kept.blocks))


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a Transformers model, in order: what gradient checkpointing computes again."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max((list(found) for found in lists), key=len, default=[])


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr,operator]


def _text(config: Any) -> int:
    """Tokens of a text to count with; RoBERTa keeps the first positions for padding."""
    most = positions(config)
    return TEXT if most is None else min(TEXT, most // 2)


def _line(found: list[int], unit: int) -> tuple[float, float]:
    """Constant and slope, from counts of one and of two examples of so many tokens."""
    slope = found[1] - found[0]
    return float(found[0] - slope), slope / unit
