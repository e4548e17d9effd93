"""Finding the modules that a method adapts, by names as in PEFT, and replacing them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..deploy.inputs import output_embeddings
from ..errors import CheckpointError, FormError, NotFiniteError, UserError, one_line, unknown
from ..tuner.peft_names import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from ..tuner.targets import ALL_LINEAR, is_uncalled, model_type, named
from .adapted_module import AdaptedModule
from .base import Method, TaskType
from .linear import is_linear
from .parameters import head_modules, is_in


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
    if chosen is None:
        raise ValueError(
            f"target_modules must be given: there is no default for {type(model).__name__}. Its linear layers are "
            f"named {', '.join(sorted(_linear_names(model)))}."
        )
    among = None
    if chosen == ALL_LINEAR:
        output = output_embeddings(model)
        linear = [
            path
            for path, module in model.named_modules()
            if is_linear(module) and module is not output and not is_uncalled(model, path, module)
        ]
        among = {path for path in linear if not is_in(path, heads)}
        chosen = sorted(
            {path.rpartition(".")[2] for path in among}
        )  # whole paths are taken whatever their layer's number
    paths = named(
        [path for path, _ in model.named_modules() if path and (among is None or path in among)],
        chosen,
        exclude_modules=options.get("exclude_modules"),
        layers_to_transform=options.get("layers_to_transform"),
        layers_pattern=options.get("layers_pattern"),
        modules_to_save=[*heads, *(options.get("modules_to_save") or ())],
    )
    if not paths:
        raise ValueError(
            f"target_modules={chosen!r} names nothing in {type(model).__name__} that is left to adapt. Its linear "
            f"layers are named {', '.join(sorted(_linear_names(model)))}."
        )
    if refused := [path for path in paths if is_uncalled(model, path, model.get_submodule(path))]:
        raise ValueError(
            f"target_modules: {type(model).__name__} reads the weight of {refused[0]} without calling it, or the "
            "layer's output is more than a linear map: nothing can be added to it. Leave it out with exclude_modules."
        )
    return paths


def blocks_and_kinds(paths: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """The number of each layer's block, or None, and what the layer is called in there, by the layer's path.

    Where lists of blocks have kinds in common, as encoder and decoder, what the lists differ in stands before the kind.
    """
    matches = {path: re.search(r"(?:^|\.)(\d+)\.(.+)", path) for path in paths}
    found: dict[str, tuple[int | None, str]] = {
        path: (int(match[1]), match[2]) if match else (None, path) for path, match in matches.items()
    }
    if _are_distinct(found):
        return found
    before = {
        path: list(filter(None, path[: match.start()].split("."))) if match else [] for path, match in matches.items()
    }
    common = set.intersection(*(set(names) for names in before.values() if names))
    told = {
        path: (block, ".".join((*(name for name in before[path] if name not in common), kind)))
        for path, (block, kind) in found.items()
    }
    return told if _are_distinct(told) else {path: (block, path) for path, (block, _) in found.items()}


def _are_distinct(places: Mapping[str, tuple[int | None, str]]) -> bool:
    return len(set(places.values())) == len(places)


def check_modules(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse options that name modules or layers which are not there: PEFT silently leaves those out.

    Args:
        model: a plain model.
        options: a method's, validated.

    Raises:
        ValueError: the message names the option, what is not there, and the nearest that is.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        given = options.get(option)
        if isinstance(given, str):
            if given != ALL_LINEAR and not any(re.fullmatch(given, path) for path in paths):
                raise ValueError(f"{option}={given!r} matches no module of {type(model).__name__}.")
            continue
        for name in given or ():
            if not any(path == name or path.endswith(f".{name}") for path in paths):
                raise ValueError(f"{option}: {name!r} is an {unknown('module', _last_names(paths), name)}.")
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in options.get(option) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):
                raise ValueError(f"{option}: {pattern!r} is an {unknown('module', _last_names(paths), pattern)}.")
    _check_layers(paths, options.get("layers_to_transform"), options.get("layers_pattern"))


def _check_layers(paths: Iterable[str], numbers: Any, patterns: Any) -> None:
    """Refuse numbers of layers that are not there; see `check_modules`."""
    if numbers is None:
        return
    names = [patterns] if isinstance(patterns, str) else list(patterns or [r"[^.]*"])
    there: set[int] = set()
    for name in names:
        found = {int(match[1]) for path in paths if (match := re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", path))}
        if not found:
            raise ValueError(f"layers_pattern: {name!r} names no list of layers.")
        there |= found
    for number in [numbers] if isinstance(numbers, int) else numbers:
        if number not in there:
            raise ValueError(f"layers_to_transform: there is no layer {number} ({min(there)} to {max(there)} are).")


def _last_names(paths: Iterable[str]) -> list[str]:
    names = dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths)
    return [name for name in names if not name.isdigit()]


def _linear_names(model: nn.Module) -> set[str]:
    return {path.rsplit(".", 1)[-1] for path, module in model.named_modules() if is_linear(module)}


def replace(model: nn.Module, path: str, make: Callable[..., nn.Module], *args: Any) -> None:
    """Put `make(module, *args)` in place of the module at `path`."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    setattr(parent, name, make(parent.get_submodule(name), *args))


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, AdaptedModule]]:
    """The adapted modules of a model, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, AdaptedModule):
            yield path, module


def merge_adapted(model: nn.Module) -> None:
    """Replace every adapted module by a plain one that computes the same.

    Raises:
        FormError, NotFiniteError: an adapted module cannot be merged; the model is then left partly merged, and of no
            further use.
    """
    for path, module in list(adapted_modules(model)):
        try:
            plain = module.merged()
        except (FormError, NotFiniteError) as error:
            raise type(error)(f"{path}: {error}") from error
        replace(model, path, lambda _, plain=plain: plain)


def apply_method(method: Method, base: Any, task_type: TaskType, kept: Path | None = None) -> nn.Module:
    """The method on a pretrained model.

    Args:
        method: bound to its options.
        base: the pretrained model.
        task_type: of PEFT.
        kept: see `Method.apply`.

    Raises:
        UserError: the method does not fit the model, or the memory.
    """
    with plain_method_errors():
        check_modules(base, method.options)
        return method.apply(base, task_type, kept)


@contextlib.contextmanager
def plain_method_errors() -> Iterator[None]:
    """What a method says of the model, the memory or a file of the run, as a UserError."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"{one_line(error)} Remove it to begin the run again") from error
    except ValueError as error:
        raise UserError(f"method: {one_line(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"method: it does not fit the memory: {str(error).splitlines()[0]}") from error
