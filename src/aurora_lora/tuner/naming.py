"""Which modules a configuration names: `target_modules` and the fields beside it, as PEFT reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from types import SimpleNamespace

from .peft_names import check_target_module_exists

ALL_LINEAR = "all-linear"
"""PEFT's name for every linear layer but the output."""


def named(
    paths: Iterable[str],
    target_modules: Collection[str] | str,
    *,
    exclude_modules: Collection[str] | str | None = None,
    layers_to_transform: Collection[int] | int | None = None,
    layers_pattern: Collection[str] | str | None = None,
    modules_to_save: Collection[str] = (),
) -> list[str]:
    """The paths that PEFT would adapt for a configuration with these fields, in their order."""
    config = SimpleNamespace(
        target_modules=target_modules,
        target_parameters=None,
        modules_to_save=list(modules_to_save) or None,
        exclude_modules=exclude_modules,
        layers_to_transform=layers_to_transform,
        layers_pattern=layers_pattern,
    )
    # PEFT's answer for an excluded module is an object that is false
    return [path for path in paths if check_target_module_exists(config, path)]


def trained_whole(path: str, modules_to_save: Collection[str]) -> bool:
    """Whether a module is one of these or within one, by how PEFT finds what it trains whole.

    Any path that ends with such a name is meant: "classifier" is the `pre_classifier` of DistilBERT, too. An adapter
    there is an error.
    """
    parts = path.split(".")
    prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return any(prefix.endswith(tuple(modules_to_save)) for prefix in prefixes)


def exactly(paths: Collection[str], every: Iterable[str]) -> list[str] | str:
    """`target_modules` that name these modules and no other.

    PEFT takes an entry for each module whose path ends with it: where that is more than the modules meant, they are
    named by a pattern.

    Args:
        paths: of the modules meant.
        every: the paths of all modules of the model.
    """
    return "|".join(map(re.escape, sorted(paths))) if mistakable(paths, every) else sorted(paths)


def mistakable(paths: Collection[str], every: Iterable[str]) -> tuple[str, ...]:
    """The modules that PEFT would take for one of these, as their paths end with its path."""
    ends = tuple(f".{path}" for path in paths)
    return tuple(path for path in every if path.endswith(ends) and path not in paths)
