"""What the fields of a configuration may be, and the error that says so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

import numpy as np

MAX_RANK = 2**14
"""More is no low rank, and the r x r mixer of one layer alone has a gigabyte."""
MAX_ALPHA = 1e9


def is_number(value: Any) -> bool:
    """Whether a value is a finite number: no bool, nor an integer that no float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_int(value: Any, least: int, most: float = math.inf) -> bool:
    """Whether a value is a whole number from `least` to `most`, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_pattern(value: Any) -> bool:
    """Whether a value is a regular expression."""
    if not isinstance(value, str):
        return False
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def is_list_of(accepts: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value is a list, tuple, set or the like of what `accepts` accepts; an empty one is."""
    if not isinstance(value, Sequence | Set) or isinstance(value, str | bytes | bytearray | memoryview):
        return False
    return all(map(accepts, value))


def is_name(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_index(value: Any) -> bool:
    """Whether a value is a whole number of at least 0."""
    return is_int(value, 0)


def is_names_or_pattern(value: Any) -> bool:
    """Whether a value says which modules: a list of names, or a regular expression."""
    return is_pattern(value) or is_list_of(is_name, value)


def are_tokens(value: Any) -> bool:
    """Whether a value is a list of numbers of tokens, or such lists by the name of the embedding."""
    if isinstance(value, Mapping):
        return all(is_name(name) and not isinstance(ids, Mapping) and are_tokens(ids) for name, ids in value.items())
    return is_list_of(is_index, value) and bool(value)  # asked first, an array has no truth


def are_indices(value: Any) -> bool:
    """Whether a value is a layer's number or a list of them."""
    return is_index(value) or is_list_of(is_index, value)


def are_patterns(value: Any) -> bool:
    """Whether a value is a list of regular expressions."""
    return is_list_of(is_pattern, value)


def is_alpha(value: Any) -> bool:
    """Whether a value is an alpha whose scaling float32 holds."""
    return is_number(value) and abs(value) <= MAX_ALPHA


ALPHA = f"a finite number of at most {MAX_ALPHA:g}"

_MODULES = (is_names_or_pattern, "a list of names of modules, or a regular expression")
MODULE_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": _MODULES,
    "exclude_modules": _MODULES,
    "layers_to_transform": (are_indices, "a layer's number or a list of them"),
    "layers_pattern": (
        lambda value: is_pattern(value) or are_patterns(value),
        "the name of the list of layers, or a list of such names",
    ),
    "modules_to_save": (are_patterns, "a list of names of modules"),
    "trainable_token_indices": (are_tokens, "a list of numbers of tokens, or such lists by the embedding"),
}
"""PEFT's fields of modules, layers and tokens, where they are not None: what each may be, in code and in words."""

PATTERN_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank_pattern": (lambda value: is_int(value, 1, MAX_RANK), f"a whole number of 1 to {MAX_RANK}"),
    "alpha_pattern": (is_alpha, ALPHA),
}
"""PEFT's dictionaries by names of modules or regular expressions: what each of their values may be."""


def is_grid(ends: Any, intervals: int) -> bool:
    """Whether two numbers span a grid whose points float32 can tell apart."""
    if not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(is_number, ends)) and ends[0] < ends[1]):
        return False
    if max(map(abs, ends)) > MAX_ALPHA:
        return False
    points = np.linspace(ends[0], ends[1], intervals + 1, dtype=np.float32)
    return bool(np.all(np.diff(points) >= 1e-6))


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the field, the value and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{name}={short(value)} is not allowed: it must be {allowed}.")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the value is one of those allowed."""
    # `1 == True` must not let an integer pass for a switch, nor a list raise in `in`
    is_allowed = any(type(value) is type(option) and value == option for option in allowed)
    require(is_allowed, name, value, f"one of {', '.join(map(repr, allowed))}")


def short(value: Any) -> str:
    """A value for an error message: cut where it is long."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        return f"<{type(value).__name__}>"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
