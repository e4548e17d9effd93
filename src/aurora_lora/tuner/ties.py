"""Tied weights, as those of the embeddings and the output layer, that a merge takes apart."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .original_weight import parameter_like


def untie_all(model: nn.Module) -> None:
    """Where one of a model's tied weights has come apart from the others, take all of them apart.

    Transformers ties them all, biases too, by one field of the config. With that off, a parameter that several modules
    still share is written once, and the others would come back random: each gets its own.

    Args:
        model: with adapters or without.
    """
    for owner in model.modules():
        if not isinstance(owner, PreTrainedModel):
            continue
        held = _parameters(owner)
        every: dict[str, str] = getattr(owner, "all_tied_weights_keys", None) or {}
        ties = {one: (held[one], held[other]) for one, other in every.items() if one in held and other in held}
        if any(_apart(owner.get_parameter(one), owner.get_parameter(other)) for one, other in ties.values()):
            _own(owner, dict.fromkeys(path for tie in ties.values() for path in tie))
            owner.all_tied_weights_keys = {one: other for one, other in every.items() if one not in ties}
            whole: Any = owner.config
            parts = (getattr(whole, name, None) for name in getattr(whole, "sub_configs", ()))
            for config in (whole, *parts):  # some take it from a part again when they are read
                if getattr(config, "tie_word_embeddings", False):
                    config.tie_word_embeddings = False


def _parameters(model: nn.Module) -> dict[str, str]:
    """The path of each parameter, by the one that it has without adapters."""
    paths = (path for path, _ in model.named_parameters(remove_duplicate=False))
    return {".".join(part for part in path.split(".") if part != "base_layer"): path for path in paths}


def _apart(one: nn.Parameter, other: nn.Parameter) -> bool:
    """What has been offloaded is another parameter in each module, and is taken to be tied as ever."""
    return one is not other and not one.is_meta and not other.is_meta


def _own(model: nn.Module, paths: dict[str, None]) -> None:
    """Give each of these paths a parameter of its own, and a module: resized embeddings are one module in many places.

    The first path of each keeps what it has.
    """
    places: dict[nn.Module, str] = {}
    seen: set[nn.Parameter] = set()
    for path in paths:
        place, _, name = path.rpartition(".")
        module = model.get_submodule(place)
        if places.setdefault(module, place) != place:
            module = copy.deepcopy(module)
            parent, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module)
            places[module] = place
        parameter = getattr(module, name)
        if parameter in seen and not parameter.is_meta:
            parameter = parameter_like(parameter, parameter.detach().clone())
            setattr(module, name, parameter)
        seen.add(parameter)
