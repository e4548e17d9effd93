"""What a run keeps in memory: its weights, each in its precision, and what the backward pass will need.

A run computes in `training.precision`, and keeps what it does not train in it. What it trains is in float32.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data import Task
from ..errors import UserError, one_line
from .model_inputs import Processor
from .models import load_base_model
from .recipe import Recipe

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the weights that are not trained: as the recipe says; float32 where the body's own are trained.

    The few weights that such a method freezes are in the same modules as those that it trains.
    """
    own = recipe.base.dtype or recipe.training.precision
    return torch.float32 if recipe.method.base_use == "trained" else PRECISIONS[own]


def base_for(recipe: Recipe, task: Task, processor: Processor, labels: Sequence[str]) -> PreTrainedModel:
    """The pretrained model in the precision that the recipe keeps it in, or still exact where the method asks for that.

    Raises:
        UserError: it cannot be loaded.
    """
    exact = recipe.method.base_use == "start"
    return load_base_model(recipe.base, task, processor, labels, frozen_dtype(recipe), exact=exact)


def keep_frozen_in(dtype: torch.dtype, pretrained: Iterable[nn.Parameter]) -> None:
    """Round those of the pretrained weights to a precision that are not trained, where they are."""
    for parameter in pretrained:
        if parameter.is_floating_point() and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def checkpoint_activations(model: nn.Module) -> None:
    """Let training keep the inputs of the model's blocks alone, and compute the rest again for the backward pass.

    Raises:
        UserError: the model has no such blocks.
    """
    # newer Transformers call it by the first name and warn of the second
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable: Any = next((found for name in names if (found := getattr(model, name, None)) is not None), None)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"training.gradient_checkpointing: {one_line(error)}") from error


def reset_peak_memory() -> None:
    """Measure `peak_memory` from here on; on a CPU where the system can (Linux), else it is that of the process."""
    gc.collect()  # a model that was trained before: Accelerate binds its `forward` to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The largest memory in use since `reset_peak_memory`, in MiB: of the GPU, or of this process without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_peak_memory()


def process_peak_memory() -> float:
    """The largest memory of this process in use, in MiB, whether there is a GPU or not; see `peak_memory`."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    with contextlib.suppress(OSError, StopIteration):  # Linux hands what getrusage says on from the process before
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 2**10
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
