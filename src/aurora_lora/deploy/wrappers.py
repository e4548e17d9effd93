"""The model below what torch.compile, distributed training and PEFT put around it, and its output layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

PARALLEL = (DataParallel, DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of torch.compile and of distributed training."""
    # not by attribute: a PEFT model has those of the compiled model below it, too
    while (inner := model._modules.get("_orig_mod")) is not None or isinstance(model, PARALLEL):
        model = model.module if inner is None else inner  # type: ignore[assignment]
    return model


def without_parallel(model: nn.Module) -> nn.Module:
    """The model without DDP's wrapper, which sends buffers to all processes in each forward pass, and DataParallel's,
    which runs copies of the model, whose layers nobody watches."""
    if isinstance(model, PARALLEL):
        return without_parallel(model.module)
    compiled = model._modules.get("_orig_mod")  # Accelerate compiles what is wrapped
    return without_parallel(compiled) if isinstance(compiled, PARALLEL) else model


def plain_model(model: Any) -> nn.Module:
    """The model below an adapter of PEFT and the wrappers of torch.compile and of distributed training."""
    inner: Any = unwrapped(model)
    return unwrapped(inner.get_base_model()) if hasattr(inner, "get_base_model") else inner


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """What makes vectors of a plain model's tokens or patches; None of a model that does not say."""
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The output layer of a plain language model, as pretrained as the rest; None of any other model."""
    get_output_embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    found: nn.Module | None = get_output_embeddings()
    return found
