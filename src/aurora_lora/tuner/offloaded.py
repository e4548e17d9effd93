"""The weights of adapters on models that Accelerate (`device_map`) or diffusers (group offloading) put into main memory
or on disk.

There a module's weights are elsewhere, on meta with Accelerate, until a hook loads them for the module's own forward
pass. A dictionary of parameters is never called: these load what is asked of them themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from .peft_names import BufferDict, onload_layer


class AdapterParameters(nn.ParameterDict):
    """`nn.ParameterDict`, whose entries are there also while Accelerate or diffusers has them elsewhere."""

    def __getitem__(self, key: str) -> Any:
        if "_diffusers_hook" in self.__dict__:
            _load_group(self)
        return present(self, key, super().__getitem__(key))

    def __setitem__(self, key: str, value: Any) -> None:
        """A plain tensor, as PEFT assigns where it casts or moves an entry, becomes a parameter that is trained if the
        entry was: `nn.ParameterDict` would always train it."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and key in self:
            value = nn.Parameter(value.detach(), super().__getitem__(key).requires_grad)
        super().__setitem__(key, value)


class AdapterBuffers(BufferDict):
    """PEFT's `BufferDict`, in the same way.

    They never go to meta with a base layer that is there: unlike parameters, Accelerate expects buffers in memory when
    it places a model. One that is put in later is where Accelerate looks, too.
    """

    def __getitem__(self, key: str) -> Any:
        if "_diffusers_hook" in self.__dict__:
            _load_group(self)
        return present(self, key, super().__getitem__(key))

    def __setitem__(self, key: str, value: Tensor) -> None:
        if value.is_meta and key in self:
            value = super().__getitem__(key).to(value.dtype)
        super().__setitem__(key, value)
        for hook in _offloading_hooks(self):
            weights: Any = hook.weights_map
            held = getattr(weights.dataset, "state_dict", weights.dataset)
            held[f"{weights.prefix}{key}"] = value.to("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterBuffers:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for key, value in self._buffers.items():
            if value is not None and value.is_meta:
                self._buffers[key] = before[key]
        return self


def present(holder: nn.Module, key: str, value: Tensor) -> Tensor:
    """The value, from where it was offloaded to, on the device that Accelerate computes on."""
    if not value.is_meta:
        return value
    for hook in _offloading_hooks(holder):
        _name_as_loaded(hook.weights_map, key)
        loaded: Tensor = hook.weights_map[key].to(hook.execution_device, value.dtype)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(loaded, requires_grad=value.requires_grad)
        return loaded
    return value


def _load_group(holder: nn.Module) -> None:
    """Load what diffusers offloads at the level of leaves, once: an adapter's weights are few, and stay loaded."""
    registry: Any = holder.__dict__["_diffusers_hook"]
    hook = registry.get_hook("group_offloading")
    if hook is None or hook.group.onload_leader is not holder or holder.__dict__.get("_loaded_group") is hook.group:
        return
    hook.group.onload_()
    if hook.group.stream is not None:  # on which they are copied
        hook.group.stream.synchronize()
    holder.__dict__["_loaded_group"] = hook.group


def in_memory(layer: Any) -> AbstractContextManager[None]:
    """While the block runs, the weight of the layer's base layer is there; then it is stored, and offloaded again."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        loaded: AbstractContextManager[None] = onload_layer(layer)
        return loaded
    return nullcontext()


def is_offloaded(holder: nn.Module) -> bool:
    """Whether Accelerate keeps weights of the module elsewhere, and each use of one loads it anew."""
    return any(True for _ in _offloading_hooks(holder))


def _offloading_hooks(holder: nn.Module) -> Iterator[Any]:
    hook = holder.__dict__.get("_hf_hook")
    hooks = getattr(hook, "hooks", [hook])  # a SequentialHook has several
    return (each for each in hooks if getattr(each, "weights_map", None) is not None)


def _name_as_loaded(weights: Any, key: str) -> None:
    """Let weights on disk be found that PEFT wrote there: it takes `layer.aurora_A` for `layer.default.aurora_A`."""
    prefix, index = getattr(weights, "prefix", ""), getattr(getattr(weights, "dataset", None), "index", {})
    layer, _, name = prefix.removesuffix(".").rpartition(".")
    written = index.get(f"{layer}.{key}.{name}")
    if written is not None:
        index.setdefault(f"{prefix}{key}", written)
