"""The AuroRA layers of a model, and the adapters that are active in them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from ..errors import AlreadyMergedError, MergeError
from .config import AuroraConfig
from .layer import AuroraLayer
from .offloaded import AdapterBuffers, AdapterParameters
from .peft_names import AuxiliaryTrainingWrapper, BaseTunerLayer
from .stacked import by_plain_path


def aurora_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer]]:
    """(name, layer) of each AuroRA layer of a model, in the order of the model."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AuroraLayer))


def plain_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer]]:
    """(path in the plain model, layer) of each AuroRA layer of a model."""
    return by_plain_path(model, aurora_layers(model))


def active_configs(model: nn.Module) -> dict[str, AuroraConfig]:
    """The configs of the active AuroRA adapters of a model, by name.

    Raises:
        ValueError: the model has no AuroRA layer.
    """
    check_adapted(model)
    return {name: layer.aurora_config[name] for _, layer, name in active_layers(model)}


def active_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer, str]]:
    """(path in the plain model, layer, adapter): each AuroRA layer of a model with each adapter it holds that is active
    in any layer."""
    layers = list(plain_layers(model))
    names = dict.fromkeys(name for _, layer in layers for name in layer.active_adapters if name in layer.aurora_A)
    return ((path, layer, name) for path, layer in layers for name in names if name in layer.aurora_A)


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the AuroRA adapters that are active in a model.

    Raises:
        ValueError: the model has no AuroRA layer.
    """
    check_adapted(model)
    return list(dict.fromkeys(name for _, _, name in active_layers(model)))


def check_adapted(model: nn.Module) -> None:
    """Raise a ValueError for a model without AuroRA layers."""
    if not any(aurora_layers(model)):
        raise ValueError("The model has no AuroRA adapter: make one with get_peft_model(model, AuroraConfig(...)).")


def check_before_merge(
    layers: Iterable[tuple[str, AuroraLayer]], adapter_names: list[str] | None = None, safe_merge: bool = False
) -> list[AuroraLayer]:
    """Raise what `merge` would raise in any of these layers; an error about one layer names its path.

    Args:
        layers: with their paths.
        adapter_names: which adapters; the active ones if None.
        safe_merge: see `AuroraModel.merge_adapter`.

    Returns:
        The layers that it would change.
    """
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merge itself will warn
        for path, layer in layers:
            names = layer.adapters_to_merge(adapter_names)
            if names or layer.holds_rounded_merge:
                together = [*layer.merged_adapters, *names]
                try:
                    if safe_merge:
                        layer.merged_weight(together, safe_merge=True)
                    else:
                        layer.check_mergeable(together)
                except (MergeError, NotImplementedError) as error:  # of this layer; others are of the adapter
                    raise type(error)(f"{path}: {error}") from error
                found.append(layer)
    return found


def no_adapter(name: str, there: Iterable[str], of: str = "AuroRA") -> ValueError:
    """What to raise where a model has no adapter of that name, but others.

    Args:
        name: the one that was asked for.
        there: those that the model has.
        of: the methods that are looked for.
    """
    known = ", ".join(map(repr, dict.fromkeys(there))) or "none"
    return ValueError(f"The model has no {of} adapter named {name!r} (there are: {known}).")


def check_adapter_name(name: str) -> None:
    """Raise a ValueError for a name that layers cannot hold a weight by: their dictionaries are modules, whose own
    attributes are taken, and which take no dots."""
    holders = (AdapterParameters(), AdapterBuffers(persistent=True))
    if not name or "." in name or any(hasattr(holder, name) for holder in holders):
        raise ValueError(
            f"An AuroRA adapter cannot have the name {name!r}: it is empty, has a dot, or is an attribute of PyTorch's "
            "dictionaries of weights. Choose another."
        )


def warn_of_names_in_paths(model: nn.Module, names: Collection[str]) -> None:
    """Warn where one of several adapters has a name that paths of adapted modules have: PEFT saves none of the weights
    of which another adapter's name is a part.

    Args:
        model: with the adapters.
        names: of all of them.
    """
    if len(names) < 2:
        return
    kinds = (AuroraLayer, AuxiliaryTrainingWrapper)
    paths = (path for path, module in model.named_modules() if isinstance(module, kinds))
    taken = {
        *AuroraLayer.adapter_layer_names,
        "base_model",
        "model",
        *(part for path in paths for part in path.split(".")),
    }
    if found := sorted(taken & set(names)):
        warnings.warn(
            f"{found[0]!r} is a part of the names of this model's weights: what save_pretrained writes of the other "
            "adapters lacks those. Choose another adapter name.",
            stacklevel=4,
        )


def check_names(model: nn.Module, names: Sequence[str] | str | None) -> None:
    """Raise a ValueError if one of these names is that of no adapter of the model, of any method."""
    if names is None or isinstance(names, str):
        return
    holders = (one for one in model.modules() if isinstance(one, (BaseTunerLayer, AuxiliaryTrainingWrapper)))
    there = {name for holder in holders for name in holder._get_available_adapters()}
    for name in names:
        if name not in there:
            raise no_adapter(name, sorted(there))


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the AuroRA adapters that a model has, active or not."""
    return list(dict.fromkeys(name for _, layer in aurora_layers(model) for name in layer.aurora_A))


def check_not_merged(path: str, layer: Any, action: str) -> None:
    """Raise an AlreadyMergedError if adapters are merged into the weight of a layer, of any method.

    Args:
        path: names the layer.
        layer: that is asked.
        action: what cannot be done.
    """
    if layer.merged:
        raise AlreadyMergedError(f"{path} is merged: call unmerge_adapter() before {action}.")


def note_shared_weights(model: nn.Module) -> None:
    """Let each AuroRA layer know whether its base weight is another module's as well, as that of tied embeddings is,
    and whether its base layer has another place in the model.

    A merged layer has the weight still that it had before: `unmerge` gives it back.
    """
    layers = [layer for _, layer in aurora_layers(model)]
    held = [layer._original_weight.parameter for layer in layers if layer._original_weight is not None]
    parameters = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    uses = Counter(id(parameter) for parameter in (*parameters, *held))
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for layer in layers:
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        layer.weight_is_shared = weight is not None and uses[id(weight)] > 1
        layer.base_is_elsewhere = places[id(base)] > 1
