"""What is undone where a model refuses an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .adapters import aurora_layers
from .fused_encoder import may_fuse_layers_of
from .layer import AuroraLayer


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
    try:
        yield
    except BaseException:
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


def _put_back(parent: nn.Module, name: str, layer: AuroraLayer, there: set[AuroraLayer]) -> None:
    """Put a base layer back in its place."""
    setattr(parent, name, layer.base_layer)
    if isinstance(parent, nn.TransformerEncoderLayer) and there.isdisjoint(parent.modules()):
        may_fuse_layers_of(parent)
