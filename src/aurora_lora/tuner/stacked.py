"""Names in a model without what is put around its modules: wrappers, and layers of adapters.

Where another method's adapter is put over AuroRA's, or under it, a tuner layer is the `base_layer` of another. What is
saved has the names that it would have with AuroRA's layers alone, so that it can be loaded where the other adapter is
not. What is reported has the paths of the plain model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from peft import PeftMixedModel, PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .layer import AuroraLayer
from .peft_names import PEFT_PREFIX, AuxiliaryTrainingWrapper, BaseTuner, BaseTunerLayer, TrainableTokensLayer

_INNER = "base_layer"
_WRAPPERS: tuple[tuple[str, tuple[type[Any], ...]], ...] = (
    ("module", (DataParallel, DistributedDataParallel)),
    ("base_model", (PeftModel, PeftMixedModel)),
    ("model", (BaseTuner,)),
    (_INNER, (BaseTunerLayer,)),
    ("token_adapter", (AuxiliaryTrainingWrapper,)),
)
"""What wrappers call the module that they are around."""
_NAMES_OF_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The wrappers that are told by the name: of torch.compile, of FSDP and of its checkpointing."""

M = TypeVar("M")


def plain_path(model: nn.Module, path: str) -> str:
    """The path of a module in the plain model, as `target_modules` and `rank_pattern` have it: without what PEFT, DDP,
    FSDP and torch.compile put around modules."""
    return _without(model, path, _is_of_wrapper)


def by_plain_path(model: nn.Module, modules: Iterable[tuple[str, M]]) -> Iterator[tuple[str, M]]:
    """The modules, given by their paths in a model, by those in the plain one.

    Of several layers around one module the outermost has its path, and those within `base_layer` after it.
    """
    taken: set[str] = set()
    for path, module in modules:
        plain = plain_path(model, path)
        while plain in taken:
            plain += f".{_INNER}"
        taken.add(plain)
        yield plain, module


def without_wrappers(path: str) -> str:
    """A path as states have it: without what FSDP, its checkpointing and torch.compile put around modules."""
    return ".".join(part for part in path.split(".") if part not in _NAMES_OF_WRAPPERS)


def name_alone(model: nn.Module, name: str) -> str:
    """The name that a module, or a weight, would have in the model without the layers of other methods."""
    return _without(model, name, lambda module, part: part == _INNER and _is_of_another_method(module))


def _without(model: nn.Module, name: str, is_left_out: Callable[[nn.Module | None, str], bool]) -> str:
    """A name without some of its parts; of each it is asked with the module that has it."""
    parts: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        if not is_left_out(module, part):
            parts.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(parts)


def alone(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model under these names."""
    return {name_alone(model, name): value for name, value in state.items()}


def names_within(model: nn.Module) -> dict[str, str]:
    """The reverse, without PEFT's prefix: weights that are named otherwise in the model, by their names alone."""
    if not any(_is_of_another_method(module) for module in model.modules()):
        return {}
    names = {name_alone(model, name): name for name in model.state_dict()}
    return {name.removeprefix(PEFT_PREFIX): within for name, within in names.items() if name != within}


def without_inner(path: str) -> str:
    """The path of an AuroRA layer that may be within others."""
    while path.endswith(f".{_INNER}"):
        path = path.removesuffix(f".{_INNER}")
    return path


def _is_of_wrapper(module: nn.Module | None, part: str) -> bool:
    return part in _NAMES_OF_WRAPPERS or any(part == name and isinstance(module, kinds) for name, kinds in _WRAPPERS)


def _is_of_another_method(module: nn.Module | None) -> bool:
    return isinstance(module, BaseTunerLayer) and not isinstance(module, (AuroraLayer, TrainableTokensLayer))
