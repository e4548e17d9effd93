"""Ranks where the gradient says that they matter: a budget of weights, shared out among the layers of a probe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from peft import LoraConfig

from ..tuner import AuroraConfig
from ..tuner.config import scaling_divisor
from ..tuner.peft_names import SEQ_CLS_HEAD_NAMES, get_pattern_key
from ..tuner.targets import ALL_LINEAR, exactly, named, trained_whole
from ..values import is_number, require
from .probe import LayerProbe, Probe

HEADS = {"SEQ_CLS": SEQ_CLS_HEAD_NAMES, "TOKEN_CLS": SEQ_CLS_HEAD_NAMES, "QUESTION_ANS": ["qa_outputs"]}
"""What PEFT trains whole by the type of task."""
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""The fields of a configuration that say which layers there are."""


def cost(layer: LayerProbe) -> int:
    """Weights of A and B that one direction takes."""
    return layer.d_in + layer.d_out


def share_out(layers: Iterable[LayerProbe], budget: int) -> dict[str, int]:
    """Give a budget of weights to the directions of all layers, in one list from the most worth to the least: by the
    singular value squared, divided by the weights that the direction takes.

    Args:
        layers: of a probe.
        budget: weights of A and B, `r (d_in + d_out)` for a rank r. What sigma adds to AuroRA's is not counted: a few
            dozen a layer.

    Returns:
        The ranks of the layers that have one, in the order of the model.

    Raises:
        ValueError: the budget is too small for any direction.
    """
    known = list(layers)
    worth = [(layer.singular_values.double().square() / cost(layer)).tolist() for layer in known]
    listed = [(-value, i, j) for i, values in enumerate(worth) for j, value in enumerate(values)]
    ranks, left = [0] * len(known), budget
    for value, i, j in sorted(listed):
        if value < 0 and j == ranks[i] and cost(known[i]) <= left:
            ranks[i] += 1
            left -= cost(known[i])
    if not any(ranks):
        least = min(map(cost, known), default=0)
        raise ValueError(f"budget={budget!r} is not allowed: one direction takes {least} weights at least.")
    return {layer.layer: rank for layer, rank in zip(known, ranks, strict=True) if rank}


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


C = TypeVar("C", LoraConfig, AuroraConfig)


def ranked_config(
    found: Probe,
    budget: int,
    config: type[C] = AuroraConfig,  # type: ignore[assignment]
    *,
    scaling: float = 2.0,
    **fields: Any,
) -> C:
    """An ordinary `AuroraConfig` or `LoraConfig` whose ranks are where the gradient says that they matter.

    What is trained whole gets nothing: `modules_to_save`, and the heads that PEFT adds to them by `task_type`.

    Args:
        found: of `probe`.
        budget: weights; see `share_out`. LoRA of rank r on some layers takes r times the sum of their widths.
        config: `AuroraConfig` or PEFT's `LoraConfig`.
        scaling: of every layer: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        fields: further fields of the configuration. `target_modules`, `exclude_modules`, `layers_to_transform` and
            `layers_pattern` choose among the layers of the probe, as PEFT reads them.

    Returns:
        A `config` with `target_modules`, and `rank_pattern` and `alpha_pattern` by layer.

    Raises:
        TypeError: a field that the budget decides, as `r`, is given too.
        ValueError: the budget is too small, no layer is left, or a field's value is not allowed.
    """
    require(is_number(scaling) and scaling > 0, "scaling", scaling, "a finite number above 0")
    alpha, rslora = "lora_alpha" if issubclass(config, LoraConfig) else "alpha", bool(fields.get("use_rslora"))
    choice = {name: fields.pop(name) for name in _CHOICE if name in fields}
    if choice.get("target_modules") == ALL_LINEAR:
        choice["target_modules"] = None  # PEFT takes no layers_to_transform with a text
    AuroraConfig(**choice, modules_to_save=fields.get("modules_to_save"))  # raises what is not allowed
    layers = {layer.layer: layer for layer in found.layers}
    if choice.get("target_modules") is None:
        of_blocks = choice.get("layers_to_transform") is not None  # PEFT takes a whole path whatever these say
        choice["target_modules"] = {path.rpartition(".")[2] for path in layers if "." in path or not of_blocks}
    whole = [*(fields.get("modules_to_save") or ()), *HEADS.get(fields.get("task_type") or "", ())]
    left = [path for path in named(layers, **choice, modules_to_save=whole) if not trained_whole(path, whole)]
    if not left:
        raise ValueError(
            "None of the probed layers is left: see target_modules, exclude_modules, layers_to_transform. They are "
            f"named {', '.join(sorted({path.rpartition('.')[2] for path in layers}))}."
        )
    ranks = share_out([layers[path] for path in left], budget)
    return config(**rank_fields(ranks, scaling, alpha, found.modules, rslora=rslora), **fields)
