"""Ranks where the gradient says that they matter: a budget of weights, shared out among the layers of a probe."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar, overload

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..finite import is_finite
from ..tuner import AuroraConfig
from ..tuner.config import scaling_divisor
from ..tuner.naming import ALL_LINEAR, exactly, named, trained_whole
from ..tuner.peft_names import SEQ_CLS_HEAD_NAMES, get_pattern_key
from ..values import is_int, is_number, require, short
from .gradients import frozen_weights
from .probe_result import Probe, check_probe
from .sketch import LayerProbe

HEADS = {"SEQ_CLS": SEQ_CLS_HEAD_NAMES, "TOKEN_CLS": SEQ_CLS_HEAD_NAMES, "QUESTION_ANS": ["qa_outputs"]}
"""What PEFT trains whole by the type of task."""
_HEADS = {name for names in HEADS.values() for name in names}

_DECIDED = ("r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern")
"""Fields of a configuration that a budget decides."""
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""The fields of a configuration that say which layers there are."""

Worth = Callable[[LayerProbe], Tensor]


def squared_by_weight(layer: LayerProbe) -> Tensor:
    """What a weight of each direction is worth, (k,): its singular value squared, by the weights that it takes."""
    return layer.singular_values.double().square() / cost(layer)


def cost(layer: LayerProbe) -> int:
    """Weights of A and B that one direction takes."""
    return layer.d_in + layer.d_out


Budget = int | str
"""Weights of A and B: their number, or what they are as many as, such as `"r=8 on query and value"`."""
LIKE = re.compile(r"r=([1-9][0-9]{0,5}) on (\S.*)")
BUDGET_FORMS = "a whole number of at least 1, or as many as LoRA has, such as 'r=8 on query and value'"


def is_budget(value: Any) -> bool:
    """Whether a value has one of the forms of a budget."""
    if isinstance(value, str):
        return LIKE.fullmatch(value) is not None
    return is_int(value, 1)


def weights_of(budget: Budget, costs: Mapping[str, int]) -> int:
    """The weights of a budget.

    Args:
        budget: a number, or rank and names of layers, which end their paths as in PEFT's `target_modules`.
        costs: `d_in + d_out` by the path of each layer.

    Raises:
        ValueError: another form, or a name that no layer has.
    """
    require(is_budget(budget), "budget", budget, BUDGET_FORMS)
    if not isinstance(budget, str):
        return int(budget)
    match = LIKE.fullmatch(budget)
    assert match is not None
    layers: set[str] = set()
    for name in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", match[2].strip()):
        meant = {path for path in costs if path == name or path.endswith(f".{name}")}
        if not meant:
            last = sorted({path.rpartition(".")[2] for path in costs})
            raise ValueError(f"budget={budget!r}: no layer is named {name!r} (there are {', '.join(last)}).")
        layers |= meant
    return int(match[1]) * sum(costs[path] for path in layers)


def budget_in(model: nn.Module, budget: Budget | None, whole: Collection[str] = ()) -> int | None:
    """The weights of a budget in a model, plain or of PEFT, if there is one. What is trained whole does not count.

    Args:
        model: with the layers.
        budget: a number, or rank and names of layers.
        whole: names of modules that are trained whole, beside those that PEFT takes for a head.

    Raises:
        ValueError: as `weights_of`.
    """
    if budget is None:
        return None
    weights = {
        path: each
        for path, each in frozen_weights(model).items()
        if not is_head_name(path) and not trained_whole(path, whole)
    }
    return weights_of(budget, {path: weight.d_in + weight.d_out for path, weight in weights.items()})


def is_head_name(path: str) -> bool:
    """Whether a module of a plain model is one that PEFT takes for a head, or within one."""
    return trained_whole(path.partition(".")[0], _HEADS)


def share_out(layers: Iterable[LayerProbe], budget: Budget, worth: Worth = squared_by_weight) -> dict[str, int]:
    """Give a budget of weights to the directions of all layers, in one list from the most worth to the least.

    Args:
        layers: of a probe.
        budget: weights of A and B, `r (d_in + d_out)` for a rank r, or what they are as many as (`Budget`). What sigma
            adds to AuroRA's is not counted: a few dozen a layer.
        worth: of each direction of a layer; within one it must not rise.

    Returns:
        The ranks of the layers that have one, in the order of the model.

    Raises:
        TypeError: `worth` gives something else.
        ValueError: the budget is too small for any direction, or a worth is not finite.
    """
    known = list(layers)
    worths = {layer.layer: _worths(layer, worth) for layer in known}
    budget = weights_of(budget, {layer.layer: cost(layer) for layer in known})
    listed = [(-value, i, j) for i, layer in enumerate(known) for j, value in enumerate(worths[layer.layer])]
    ranks, left = [0] * len(known), budget
    for value, i, j in sorted(listed):
        if value < 0 and j == ranks[i] and cost(known[i]) <= left:
            ranks[i] += 1
            left -= cost(known[i])
    if not any(ranks):
        least = min(map(cost, known), default=0)
        raise ValueError(f"budget={budget!r} is not allowed: one direction takes {least} weights at least.")
    return {layer.layer: rank for layer, rank in zip(known, ranks, strict=True) if rank}


def _worths(layer: LayerProbe, worth: Worth) -> list[float]:
    k, given = len(layer.singular_values), worth(layer)
    try:
        found = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.shape != (k,):
        raise TypeError(f"worth must return a number for each of {k} directions, and gave {short(given)}.")
    if not is_finite(found):
        raise ValueError(f"worth gives numbers that are not finite, of {layer.layer}.")
    numbers: list[float] = found.tolist()
    return numbers


def rank_fields(
    ranks: Mapping[str, int],
    scaling: float,
    alpha: str = "alpha",
    modules: Collection[str] = (),
    *,
    rslora: bool = False,
) -> dict[str, Any]:
    """Ranks by layer as fields of a configuration; every layer has the same scaling.

    PEFT takes a path for each that ends with it: where that is more than the layer, it is a pattern from the start.

    Args:
        ranks: by the layer's path.
        scaling: alpha / r, or alpha / sqrt(r) with `rslora`.
        alpha: how the configuration calls alpha.
        modules: the paths of all modules of the model, or of those that could be taken for a layer.
        rslora: what `use_rslora` says.
    """

    def alpha_of(rank: int) -> float:
        return scaling * scaling_divisor(rank, rslora)

    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {_pattern(layer, ranks): rank for layer, rank in ranks.items() if rank != r}
    targets = exactly(ranks, modules)
    return {
        "target_modules": targets if isinstance(targets, str) else list(ranks),
        "r": r,
        alpha: alpha_of(r),
        "rank_pattern": others,
        "alpha_pattern": {pattern: alpha_of(rank) for pattern, rank in others.items()},
    }


def _pattern(layer: str, layers: Iterable[str]) -> str:
    """What names a layer and none of the others in PEFT's `rank_pattern`."""
    more = any(other != layer and get_pattern_key([layer], other) == layer for other in layers)
    return f"^{re.escape(layer)}" if more else layer


def alpha_name(of_lora: bool) -> str:
    """How a method's options call alpha."""
    return "lora_alpha" if of_lora else "alpha"


def fits(layer: LayerProbe, of_lora: bool) -> bool:
    """Whether the directions are rows of A: LoRA's A of a grouped convolution is wider."""
    return layer.conv_groups == 1 or not of_lora


def _of_experts(layers: Collection[str]) -> str:
    """What to add to a message where PEFT's LoRA cannot be put on layers."""
    if not layers:
        return ""
    names = ", ".join(sorted({path.rpartition(".")[2] for path in layers}))
    return f" PEFT's LoRA takes {names} for the names of this model's fused experts; AuroraConfig adapts these layers."


def offered(found: Probe, of_lora: bool) -> list[LayerProbe]:
    """The layers that an adapter can be put on, and whose directions are rows of its A."""
    refused = set(found.taken_for_experts) if of_lora else ()
    return [layer for layer in found.layers if fits(layer, of_lora) and layer.layer not in refused]


C = TypeVar("C", bound=LoraConfig | AuroraConfig)


@overload
def ranked_config(
    found: Probe, budget: Budget, *, scaling: float = ..., worth: Worth = ..., **fields: Any
) -> AuroraConfig: ...


@overload
def ranked_config(
    found: Probe, budget: Budget, config: type[C], *, scaling: float = ..., worth: Worth = ..., **fields: Any
) -> C: ...


def ranked_config(
    found: Probe,
    budget: Budget,
    config: type[Any] = AuroraConfig,
    *,
    scaling: float = 2.0,
    worth: Worth = squared_by_weight,
    **fields: Any,
) -> Any:
    """An ordinary `AuroraConfig` or `LoraConfig` whose ranks are where the gradient says that they matter.

    What is trained whole gets nothing: `modules_to_save`, and the heads that PEFT adds to them by `task_type`. Nor do,
    in a `LoraConfig`, layers with the names of fused experts (`found.taken_for_experts`, in DeepSeek-V3 those of dense
    blocks and shared experts): PEFT would adapt the experts in their place.

    Args:
        found: of `probe`.
        budget: weights; see `share_out`. LoRA of rank r on some layers takes r times the sum of their widths, and
            `"r=8 on query and value"` is as many as that, in all probed layers of these names, chosen or not, with
            a gradient or without.
        config: `AuroraConfig` or PEFT's `LoraConfig`.
        scaling: of every layer: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        worth: what decides; see `share_out`.
        fields: further fields of the configuration. `target_modules`, `exclude_modules`, `layers_to_transform` and
            `layers_pattern` choose among the layers of the probe, as PEFT reads them.

    Returns:
        A `config` with `target_modules`, and `rank_pattern` and `alpha_pattern` by layer.

    Raises:
        TypeError: `found` is no result of `probe`, or `worth` does not give what it should.
        ValueError: the budget is too small, no layer is left, or a field's value is not allowed.
    """
    check_probe(found)
    is_class = isinstance(config, type) and issubclass(config, AuroraConfig | LoraConfig)
    require(is_class, "config", config, "the class AuroraConfig or LoraConfig, whose other fields follow by name")
    require(is_number(scaling) and scaling > 0, "scaling", scaling, "a finite number above 0")
    of_lora = issubclass(config, LoraConfig)
    if decided := [name for name in _DECIDED if name in fields]:
        raise ValueError(f"{decided[0]}={fields[decided[0]]!r} is not allowed: the budget decides it.")
    choice = {name: fields.pop(name) for name in _CHOICE if name in fields}
    if choice.get("target_modules") == ALL_LINEAR:
        choice["target_modules"] = None  # PEFT takes no layers_to_transform with a text
    AuroraConfig(**choice, modules_to_save=fields.get("modules_to_save"))  # raises what is not allowed
    if fields.get("layer_replication"):
        raise ValueError("layer_replication is not allowed: it numbers the layers anew that were probed.")
    paths = [layer.layer for layer in offered(found, of_lora)]
    if choice.get("target_modules") is None:
        of_blocks = choice.get("layers_to_transform") is not None  # PEFT takes a whole path whatever these say
        choice["target_modules"] = {path.rpartition(".")[2] for path in paths if "." in path or not of_blocks}
    whole = [*(fields.get("modules_to_save") or ()), *HEADS.get(fields.get("task_type") or "", ())]
    left = [path for path in named(paths, **choice, modules_to_save=whole) if not trained_whole(path, whole)]
    if not left:
        raise ValueError(
            "None of the probed layers is left: see target_modules, exclude_modules, layers_to_transform. They are "
            f"named {', '.join(sorted({path.rpartition('.')[2] for path in paths}))}."
            + (_of_experts(found.taken_for_experts) if of_lora else "")
        )
    if of_lora and (refused := named(found.taken_for_experts, **choice)):
        warnings.warn(f"Layers are left out.{_of_experts(refused)}", stacklevel=2)
    layers = [layer for layer in found.layers if layer.layer in left]
    every = {layer.layer: cost(layer) for layer in found.layers}
    every |= zip(found.without_gradient, found.widths_without_gradient, strict=True)
    counted = [path for path in named(every, ".*", modules_to_save=whole) if not trained_whole(path, whole)]
    budget = weights_of(budget, {path: every[path] for path in counted})
    ranks = share_out(layers, budget, worth)
    rslora = bool(fields.get("use_rslora"))
    return config(**rank_fields(ranks, scaling, alpha_name(of_lora), found.modules, rslora=rslora), **fields)
