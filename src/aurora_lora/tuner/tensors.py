"""Tensors as an adapter wants them: ordinary ones, also in `torch.inference_mode()`, and whole, also where sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

State = tuple[WeakIdRef, int]
"""Which tensor something is, dead or alive (an id comes again once its tensor is gone), and its changes in place."""


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made meanwhile are ordinary ones, without gradients: training and `load_state_dict` take them later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Tensors made meanwhile are ordinary ones, with or without gradients as before: inference mode has none."""
    wanted = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(wanted):
        yield


def gathered(weight: Tensor) -> Tensor:
    """The weight, gathered from all processes if it is sharded (a DTensor, as FSDP2 makes): call it on each of them."""
    if not hasattr(weight, "full_tensor"):
        return weight
    shard: Any = weight.to(computing_device(weight))
    full: Tensor = shard.full_tensor()
    return full


def computing_device(weight: Tensor) -> torch.device:
    """The device a weight is computed on; of a shard, which FSDP2 may keep in main memory, that of its mesh."""
    mesh = getattr(weight, "device_mesh", None)
    return weight.device if mesh is None else torch.empty(0, device=mesh.device_type).device


def is_tensor_parallel(module: nn.Module) -> bool:
    """Whether each process computes with its own part of the module's weight; told from FSDP2 as PEFT's LoRA does.

    FSDP2 gathers a weight before the module is called: its mesh has no names, or the name "fsdp". Older Transformers
    mark the module, whose weight is a plain tensor.
    """
    mesh = getattr(getattr(module, "weight", None), "device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    return not set(names) <= {"fsdp"} or getattr(module, "_hf_tp_plan", None) is not None


def is_float8(dtype: torch.dtype) -> bool:
    """Whether it is a precision to store weights in, as diffusers' layerwise casting does, and not to compute in."""
    return dtype.is_floating_point and dtype.itemsize == 1


def changes(x: Tensor) -> int:
    """How often a tensor was changed in place; -1 for one that was made in inference mode, which keeps no count."""
    return -1 if x.is_inference() else x._version


def state_of(x: Tensor) -> State:
    """The `State` of a tensor."""
    return WeakIdRef(x), changes(x)
