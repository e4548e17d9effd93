"""What is undone where a model refuses an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .adapters import aurora_layers
from .fused_encoder import may_fuse_layers_of
from .layer import AuroraLayer
from .peft_names import AuxiliaryTrainingWrapper


@contextmanager
def taken_back_if_refused(model: nn.Module, adapter_name: str, configs: dict[str, Any]) -> Iterator[None]:
    """An adapter that is refused within the block, half-way into the model, leaves it as it was: over what is left of
    one, PEFT would not freeze the base model.

    Args:
        model: that the adapter is put into.
        adapter_name: the adapter's.
        configs: of the model's adapters, by name, with this one's.
    """
    there = {layer for _, layer in aurora_layers(model)}
    held = {layer for layer in there if adapter_name in layer.r}
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wrapped = {
        one: adapter_name in one._adapters for one in model.modules() if isinstance(one, AuxiliaryTrainingWrapper)
    }
    try:
        yield
    except BaseException:
        _unwrap(model, adapter_name, wrapped)
        for path, layer in list(aurora_layers(model)):
            if layer not in there:
                _put_back(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], layer, there)
            elif layer not in held:
                layer.delete_adapter(adapter_name)
        for parameter, was_trained in trained:
            if parameter.requires_grad != was_trained:  # `update_layer` lets the active adapters train
                parameter.requires_grad = was_trained
        if not held:
            configs.pop(adapter_name, None)  # which `inject_adapter_in_model` would leave
        raise


def _unwrap(model: nn.Module, adapter_name: str, wrapped: dict[AuxiliaryTrainingWrapper, bool]) -> None:
    """Take modules that the adapter would have trained whole, or some rows of, out of what was put around them.

    Args:
        model: with the refused adapter.
        adapter_name: its name.
        wrapped: what was around modules before, and whether it had an adapter of that name.
    """
    for path, module in list(model.named_modules()):
        if not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        if module not in wrapped:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.original_module)
        elif not wrapped[module] and adapter_name in module._adapters:
            module.delete_adapter(adapter_name, module.active_adapters)


def _put_back(parent: nn.Module, name: str, layer: AuroraLayer, there: set[AuroraLayer]) -> None:
    """Put a base layer back in its place."""
    setattr(parent, name, layer.base_layer)
    if isinstance(parent, nn.TransformerEncoderLayer) and there.isdisjoint(parent.modules()):
        may_fuse_layers_of(parent)
