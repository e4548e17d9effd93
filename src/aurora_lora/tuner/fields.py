"""What the fields of a configuration may be, and the error that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from ..values import MOST, is_int, is_number

MAX_RANK = 2**14
"""More is no low rank, and the r x r mixer of one layer alone has a gigabyte."""


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
    return is_number(value) and abs(value) <= MOST


ALPHA = f"a finite number of at most {MOST:g}"

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
