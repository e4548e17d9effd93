"""Names in a model where another method's adapter is put over AuroRA's, or under it.

There a tuner layer is the `base_layer` of another. What is saved has the names that it would have with AuroRA's layers
alone, so that it can be loaded where the other adapter is not.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .layer import AuroraLayer
from .peft_names import PEFT_PREFIX, BaseTunerLayer, TrainableTokensLayer

_INNER = "base_layer"


def name_alone(model: nn.Module, name: str) -> str:
    """The name that a module, or a weight, would have in the model without the layers of other methods."""
    parts: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        if part != _INNER or not _is_of_another_method(module):
            parts.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(parts)


def alone(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model under these names."""
    return {name_alone(model, name): value for name, value in state.items()}


def names_within(model: nn.Module) -> dict[str, str]:
    """The reverse, without PEFT's prefix: weights that are named otherwise in the model, by their names alone."""
    if not any(_is_of_another_method(module) for module in model.modules()):
        return {}
    names = {name_alone(model, name): name for name in model.state_dict()}
    return {name.removeprefix(PEFT_PREFIX): within for name, within in names.items() if name != within}


def without_inner(path: str) -> str:
    """The path of an AuroRA layer that may be within others."""
    while path.endswith(f".{_INNER}"):
        path = path.removesuffix(f".{_INNER}")
    return path


def _is_of_another_method(module: nn.Module | None) -> bool:
    return isinstance(module, BaseTunerLayer) and not isinstance(module, (AuroraLayer, TrainableTokensLayer))
