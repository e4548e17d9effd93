"""A recipe's model without weights: its parameters, and what a step of its training keeps for the backward pass."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ...deploy.gradients import frozen_weights
from ...deploy.ranks import budget_in
from ...errors import UserError, one_line
from ...methods import ParameterCounts, count_parameters, get_method
from ...methods.options import TARGETS
from ...methods.start import ordinary
from ...methods.targets import check_modules, target_paths
from ...tasks.loading import NO_CODE, reason
from ...training.kinds import KINDS
from ...training.memory import frozen_dtype
from ...training.recipe import Recipe
from ...tuner.naming import ALL_LINEAR
from .architectures import architecture, image_tokens
from .saved_tensors import SavedTensors, fused_attention, to_fake

TEXT = 64
"""Tokens of the texts that are counted with; what is kept grows in proportion."""
FEW = 4
"""Layers of the model that is counted with: the last stands for all. Some methods leave the first three out."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a model with a method on it.

    Args:
        params: how many are trained, outside and inside the head, and all.
        bytes: of all of them.
        multiplied: how many an example goes through; the look-up of an embedding is no work.
    """

    params: ParameterCounts
    bytes: int
    multiplied: int


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


def weights(recipe: Recipe) -> Weights:
    """The parameters of a recipe's model; with a budget, at most: as if it was used up, and each layer had a share.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    return _weights(*_key(recipe))


def step_shapes(recipe: Recipe) -> StepShapes:
    """What a step of a recipe's training keeps.

    Raises:
        UserError: as `weights`.
    """
    return _step_shapes(*_key(recipe), recipe.training.precision)


Key = tuple[str, str, str, str, int, torch.dtype]


def _key(recipe: Recipe) -> Key:
    options = json.dumps(recipe.method.options, sort_keys=True)
    task = recipe.task.definition
    return recipe.model, recipe.method.name, options, task.kind, task.num_labels, frozen_dtype(recipe)


def _build(key: Key, layers: int | None = None) -> nn.Module:
    import transformers

    model, method, options, kind_name, labels, dtype = key
    kind = KINDS[kind_name]
    config = architecture(model)
    config.num_labels = labels
    share = 1.0 if layers is None else layers / config.get_text_config().num_hidden_layers
    if layers is not None:
        config.get_text_config().num_hidden_layers = layers
    with torch.device("meta"):
        try:
            base = getattr(transformers, kind.auto).from_config(config, dtype=dtype, **NO_CODE)
        except ValueError as error:
            raise UserError(f"model: '{model}' cannot be loaded: {reason(error)}") from error
        try:
            check_modules(base, json.loads(options))
            given = _at_its_budget(base, json.loads(options), share)
            return get_method(method).bind(given).apply(base, kind.task_type)
        except ValueError as error:
            raise UserError(f"method: {one_line(error)}") from error


def _at_its_budget(base: nn.Module, options: dict[str, Any], share: float) -> dict[str, Any]:
    """Options with one rank in place of a budget, for all layers that can get some of it: about what that buys.

    Args:
        base: the model, or so large a share of it.
        options: of the method.
        share: of the model, and so of a budget that is a number.
    """
    budget = budget_in(base, options.get("budget"))
    if budget is None:
        return options
    of_base = share * budget if isinstance(options["budget"], int) else budget
    paths = target_paths(base, options, ALL_LINEAR)
    widths = sum(weight.d_in + weight.d_out for path, weight in frozen_weights(base).items() if path in paths)
    others = {name: value for name, value in ordinary(options).items() if name not in TARGETS}
    return {**others, "target_modules": paths, "r": max(1, round(of_base / widths))}


def _counts(model: nn.Module, budget: int | None) -> ParameterCounts:
    """As `count_parameters`, with so many weights in A and B if there is a budget."""
    found = count_parameters(model)
    if budget is None:
        return found
    pairs = (one.numel() for name, one in model.named_parameters() if re.search(r"\.(lora|aurora)_[AB]\.", name))
    more = budget - sum(pairs)
    return replace(found, adapter=found.adapter + more, total=found.total + more)


@lru_cache(maxsize=256)
def _weights(*key: Any) -> Weights:
    model = _build(key)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    used = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}  # a tied head is both
    parameters = list(model.parameters())
    return Weights(
        _counts(model, budget_in(model, json.loads(key[2]).get("budget"))),
        sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if id(parameter) not in looked_up - used),
    )


@lru_cache(maxsize=256)
def _step_shapes(*key_and_precision: Any) -> StepShapes:
    from torch._subclasses.fake_tensor import FakeTensorMode

    *key, precision = key_and_precision
    layers = min(FEW, int(architecture(key[0]).get_text_config().num_hidden_layers))
    try:
        model = _build(tuple(key), layers)
    except UserError:  # the method names layers that are not there
        model = _build(tuple(key))
    with FakeTensorMode(allow_non_fake_inputs=True), fused_attention():
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
    kept = SavedTensors(model, blocks(model))
    # CPUs have no autocast to fp16; its shapes are those of bf16
    with kept.counting(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        model(**inputs)
    return _Counted(kept.outside, kept.blocks[-1], kept.inputs / len(kept.blocks))


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a Transformers model, in order: what gradient checkpointing computes again."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max((list(found) for found in lists), key=len, default=[])


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr,operator]


def _text(config: Any) -> int:
    """Tokens of a text to count with; RoBERTa keeps the first positions for padding."""
    return min(TEXT, getattr(config, "max_position_embeddings", TEXT) // 2)


def _line(found: list[int], unit: int) -> tuple[float, float]:
    """Constant and slope, from counts of one and of two examples of so many tokens."""
    slope = found[1] - found[0]
    return float(found[0] - slope), slope / unit
