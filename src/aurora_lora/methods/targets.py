"""Which modules a method adapts, by names as in PEFT: mostly linear layers, `torch.nn.Linear` and GPT-2's `Conv1D`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..deploy.inputs import output_embeddings
from ..errors import unknown
from ..tuner.linear import upright
from ..tuner.peft_names import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from ..tuner.targets import ALL_LINEAR, is_uncalled, model_type, named
from .parameters import head_modules, is_in

Linear = nn.Linear | Conv1D


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    """Whether the module computes `W x + b`, its weight quantised or not."""
    return isinstance(module, nn.Linear | Conv1D)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it does so with a weight in floating point, which can be changed."""
    return type(module) in (nn.Linear, Conv1D) and module.weight.is_floating_point()  # type: ignore[operator]


def matrix(layer: Linear) -> Tensor:
    """W (d_out, d_in), a view of the layer's weight."""
    return upright(layer, layer.weight)


def untie_adapted(model: nn.Module) -> None:
    """Give each adapted module whose weight another module has too (tied embeddings) one of its own.

    A merge then changes the adapted module alone.
    """
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        weight = getattr(base, "weight", None)
        if isinstance(base, nn.Module) and isinstance(weight, nn.Parameter) and uses[id(weight)] > 1:
            uses[id(weight)] -= 1
            base.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)


def lora_targets(model: nn.Module) -> list[str] | None:
    """The modules that PEFT's LoRA adapts in such a model, or None if it does not know the architecture."""
    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type(model) or "")
    return None if names is None else list(names)


def target_paths(model: nn.Module, options: Mapping[str, Any], default: list[str] | str | None) -> list[str]:
    """The paths of the modules that the options name, in the model's order; never modules that are trained whole, as
    the head is.

    Args:
        model: a plain model.
        options: `target_modules`, the others of `TARGETS` and `modules_to_save`, those that are there.
        default: what `target_modules=None` stands for in this model.

    Raises:
        ValueError: no default for this model, or nothing in it has such a name.
    """
    given = options.get("target_modules")
    chosen = given if given is not None else default
    heads = head_modules(model)
    linear = [path for path, module in model.named_modules() if is_linear(module)]
    names = f"Its linear layers are named {', '.join(sorted({path.rsplit('.', 1)[-1] for path in linear}))}."
    if chosen is None:
        raise ValueError(f"target_modules must be given: there is no default for {type(model).__name__}. {names}")
    among = [path for path, _ in model.named_modules() if path]
    if chosen == ALL_LINEAR:
        output = output_embeddings(model)
        modules = {path: model.get_submodule(path) for path in linear if not is_in(path, heads)}
        among = [path for path, one in modules.items() if one is not output and not is_uncalled(model, path, one)]
        # whole paths are taken whatever their layer's number
        chosen = sorted({path.rpartition(".")[2] for path in among})
    paths = named(
        among,
        chosen,
        exclude_modules=options.get("exclude_modules"),
        layers_to_transform=options.get("layers_to_transform"),
        layers_pattern=options.get("layers_pattern"),
        modules_to_save=[*heads, *(options.get("modules_to_save") or ())],
    )
    if not paths:
        raise ValueError(
            f"target_modules={chosen!r} names nothing in {type(model).__name__} that is left to adapt. {names}"
        )
    if refused := [path for path in paths if is_uncalled(model, path, model.get_submodule(path))]:
        raise ValueError(
            f"target_modules: {type(model).__name__} reads the weight of {refused[0]} without calling it, or the "
            "layer's output is more than a linear map: nothing can be added to it. Leave it out with exclude_modules."
        )
    return paths


def blocks_and_kinds(paths: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """The number of each layer's block, or None, and what the layer is called in there, by the layer's path.

    Where lists of blocks have names in common, as encoder and decoder, the list stands before the name.
    """
    parts = {path: re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", path) for path in paths}
    found: dict[str, tuple[int | None, str]]
    found = {path: (int(match[2]), match[3]) if match else (None, path) for path, match in parts.items()}
    if len(set(found.values())) == len(found):
        return found
    return {
        path: (int(match[2]), f"{match[1]}.{match[3]}" if match[1] else match[3]) if match else (None, path)
        for path, match in parts.items()
    }


def check_modules(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse options that name modules which are not there: PEFT silently leaves those out.

    Args:
        model: a plain model.
        options: a method's, validated.

    Raises:
        ValueError: the message names the option, what is not there, and the nearest that is.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    last = [name for name in dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths) if not name.isdigit()]
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        given = options.get(option)
        if isinstance(given, str):
            if given != ALL_LINEAR and not any(re.fullmatch(given, path) for path in paths):
                raise ValueError(f"{option}={given!r} matches no module of {type(model).__name__}.")
            continue
        for name in given or ():
            if not any(path == name or path.endswith(f".{name}") for path in paths):
                raise ValueError(f"{option}: {name!r} is an {unknown('module', last, name)}.")
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in options.get(option) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):
                raise ValueError(f"{option}: {pattern!r} is an {unknown('module', last, pattern)}.")
