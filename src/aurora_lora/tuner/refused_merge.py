"""What is said where one layer refuses to be merged, and the layers before it were merged one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AuroraError
from .state import AdapterState


@contextmanager
def tells_what_is_left(layer: AdapterState, adapter_names: list[str]) -> Iterator[None]:
    """Add to an error's message what diffusers' `fuse_lora` leaves: it scales and merges layer by layer.

    `AuroraModel.merge_adapter` asks all layers before it merges the first, and raises their errors as they are.
    """
    try:
        yield
    except (AuroraError, NotImplementedError, ValueError) as error:
        said = str(error).removesuffix(".")
        error.args = (f"{said}. {_left(layer, adapter_names)}", *error.args[1:])
        raise


def _left(layer: AdapterState, adapter_names: list[str]) -> str:
    text = "If diffusers' fuse_lora asked for it, layers before this one may be merged by now: call unfuse_lora()."
    configured = {name: layer.aurora_config[name].scaling(layer.r[name], layer.alpha[name]) for name in adapter_names}
    scaled = [name for name in adapter_names if configured[name] and layer.scaling[name] != configured[name]]
    if scaled:
        now = " and ".join(f"{layer.scaling[name] / configured[name]:.3g} for {name!r}" for name in scaled)
        text += (
            f" If it had a lora_scale, it has also scaled this layer and those before it (here to {now}), and would "
            "scale them once more: call set_adapters(names, weights) before you fuse again."
        )
    return text
