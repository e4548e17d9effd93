"""A model's parameters: which are its head's, how many are trained, and the trained ones on disk."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..tuner.targets import trained_whole

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE = "model.safetensors"
"""What a method without a PEFT adapter writes: the weights that were trained, and buffers; in checkpoints, too, where
Transformers' Trainer looks for this name."""


def keep_in_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters of a lower precision float32, where they are."""
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.element_size() < 4:
            parameter.data = parameter.data.float()


def keep_trained_in_float32(model: nn.Module) -> None:
    """`keep_in_float32` of what is trained."""
    keep_in_float32(parameter for parameter in model.parameters() if parameter.requires_grad)


_RANDOM = "_aurora_random_modules"


def mark_random(model: nn.Module, paths: Iterable[str]) -> None:
    """Count modules, by their paths, to the head: the checkpoint has no weights for them."""
    setattr(model, _RANDOM, tuple(paths))


def marked_random(model: nn.Module) -> tuple[str, ...]:
    """What `mark_random` was given for a plain or a PEFT model."""
    from ..deploy.inputs import plain_model

    return getattr(plain_model(model), _RANDOM, ())


def head_modules(model: nn.Module) -> list[str]:
    """The paths of the randomly initialised head: top-level modules with weights beside the pretrained body, and those
    that the checkpoint has no weights for.

    The output layer of a language model is none: it is as pretrained as the body. A model without a head is all body,
    and so is a model of diffusers, which has no name for its body.
    """
    from ..deploy.inputs import output_embeddings

    body = getattr(model, "base_model_prefix", None)
    if body is None or (body and not hasattr(model, body)):
        return list(marked_random(model))
    pretrained = output_embeddings(model)
    top = [
        name
        for name, child in model.named_children()
        if name != body and child is not pretrained and any(True for _ in child.parameters())
    ]
    return [*top, *marked_random(model)]


def whole_modules(model: nn.Module, given: Collection[str] | None) -> list[str]:
    """The modules that a method of PEFT trains whole: the head, and those of the option `modules_to_save`."""
    names = given or ()
    return sorted({*names, *(head for head in head_modules(model) if not trained_whole(head, names))})


def is_head(model: nn.Module, parameter: str) -> bool:
    """Whether the parameter of that name belongs to the head, in a plain or in a PEFT model."""
    if hasattr(model, "get_base_model"):
        heads = head_modules(model.get_base_model())  # type: ignore[operator]
        path, copies = re.subn(r"\.modules_to_save\.[^.]+", "", parameter)
        return bool(copies) and any(f".{head}." in f".{path}." for head in heads)
    return is_in(parameter, head_modules(model))


def is_in(path: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of these modules or in one of them."""
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters are trained, and of how many."""

    adapter: int
    head: int
    total: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Trained parameters outside and inside the head, and all (PEFT's copy of the untrained head left out)."""
    adapter = head = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        packed = getattr(parameter, "quant_state", None)  # of bitsandbytes: two weights in a byte
        total += parameter.numel() if packed is None else math.prod(packed.shape)
        if parameter.requires_grad and is_head(model, name):
            head += parameter.numel()
        elif parameter.requires_grad:
            adapter += parameter.numel()
    return ParameterCounts(adapter, head, total)


# ---------------------------------------------------------------- the trained weights of a plain model


def save_trained(model: nn.Module, directory: Path) -> None:
    """Write the weights that are trained, and the buffers, to `WEIGHTS_FILE`; frozen ones stay with the base model.

    What several modules have (tied embeddings, VeRA's random matrices) is written once.
    """
    from safetensors.torch import save_file

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    left_out = frozen | {name for name, _ in every} - once
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in left_out}
    save_file(state, str(directory / WEIGHTS_FILE), metadata={"format": "pt"})


def load_trained(model: nn.Module, directory: Path) -> None:
    """Load what `save_trained` wrote.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    from safetensors.torch import load_file

    path = directory / WEIGHTS_FILE
    try:
        result = model.load_state_dict(load_file(str(path)), strict=False)
    except RuntimeError as error:  # other shapes
        raise CheckpointError(f"{path} does not fit the model: {error}") from error
    check_loaded(model, result, path)


def check_loaded(model: nn.Module, result: Any, source: Path) -> None:
    """Raise a CheckpointError if the model has no place for a weight of a source, or a trained one got none, by the
    result of `load_state_dict`."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if odd := sorted({*result.unexpected_keys, *(trained & set(result.missing_keys))}):
        raise misfit(source, odd)


def misfit(source: Path, odd: Sequence[str]) -> CheckpointError:
    """What is raised of weights that are not those of a model, with what is odd about them."""
    return CheckpointError(f"{source} does not fit the model: {', '.join(odd[:3])}.")
