"""The options of a method as a table: what each may be, its default, and an error that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..tuner.fields import MAX_RANK, are_tokens, is_index, is_int, is_list_of, is_name, is_number, is_pattern, short
from .base import Options, PeftMethod, check_names


@dataclass(frozen=True)
class Option:
    """One option: its default, the values that are allowed, and these in words ("it must be ...")."""

    default: Any
    allowed: str
    accepts: Callable[[Any], bool]


Table = Mapping[str, Option]


def integer(default: int, least: int = 1, most: int = 2**31 - 1) -> Option:
    """A whole number of at least `least`, and at most `most`."""
    words = f"a whole number of at least {least}" + (f" and at most {most}" if most < 2**31 - 1 else "")
    return Option(default, words, lambda value: is_int(value, least, most))


def rank(default: int) -> Option:
    """A rank."""
    return integer(default, most=MAX_RANK)


def optional_integer(least: int = 1) -> Option:
    """A whole number of at least `least`, or None, which is the default."""
    number = integer(least, least)
    return Option(None, f"{number.allowed}, or null", lambda value: value is None or number.accepts(value))


def number(default: float, words: str, accepts: Callable[[float], bool]) -> Option:
    """A finite number with a further condition, `words` such as "above 0"."""

    def is_allowed(value: Any) -> bool:
        return isinstance(value, int | float) and is_number(value) and abs(value) <= 1e30 and accepts(value)

    return Option(default, f"a number {words}", is_allowed)


def positive(default: float) -> Option:
    """A finite number above 0."""
    return number(default, "above 0", lambda value: value > 0)


def dropout(default: float = 0.0) -> Option:
    """A probability below 1."""
    return number(default, "in [0, 1)", lambda value: 0 <= value < 1)


def one_of(default: Any, *others: Any) -> Option:
    """One of a few values."""
    values = (default, *others)
    words = f"one of {', '.join(map(repr, values))}"
    return Option(default, words, lambda value: any(type(value) is type(one) and value == one for one in values))


def _is_names(value: Any) -> bool:
    return bool(value) and (is_pattern(value) or is_list_of(is_name, value))


def _are_indices(value: Any) -> bool:
    return is_index(value) or (bool(value) and is_list_of(is_index, value))


def _are_patterns(value: Any) -> bool:
    return bool(value) and (is_pattern(value) or is_list_of(is_pattern, value))


def _or_none(words: str, accepts: Callable[[Any], bool]) -> Option:
    return Option(None, f"{words}, or null", lambda value: value is None or accepts(value))


_NAMES = "a list of names of modules, or a regular expression"

TARGETS: Table = {
    "target_modules": _or_none(_NAMES, _is_names),
    "exclude_modules": _or_none(_NAMES, _is_names),
    "layers_to_transform": _or_none("a layer's number or a list of them", _are_indices),
    "layers_pattern": _or_none("the name of the list of layers", _are_patterns),
}
"""Which modules are adapted: PEFT's names and meanings. None leaves the choice to the model's architecture."""


def _of_patterns(words: str, accepts: Callable[[Any], bool]) -> Option:
    def is_allowed(value: Any) -> bool:
        return isinstance(value, dict) and all(is_pattern(name) and accepts(one) for name, one in value.items())

    return Option({}, f"{words} by names of modules or regular expressions", is_allowed)


MORE: Table = {
    "modules_to_save": _or_none("a list of names of modules", lambda value: is_list_of(is_pattern, value)),
    "rank_pattern": _of_patterns("ranks", lambda value: is_int(value, 1, MAX_RANK)),
    "alpha_pattern": _of_patterns("finite numbers", is_number),
    "trainable_token_indices": _or_none("a list of numbers of tokens, or such lists by the embedding", are_tokens),
}
"""Further fields of `LoraConfig` that PEFT does not check."""

LOW_RANK: Table = {"r": rank(8), "alpha": positive(8), "dropout": dropout(), **TARGETS}
"""Rank, scaling alpha / r, and dropout on x, as in LoRA."""


def check(options: Options, table: Table) -> dict[str, Any]:
    """The options with the table's defaults filled in.

    Raises:
        ValueError: an unknown option or a value that is not allowed; the message names the option.
    """
    check_names(options, table)
    for name, value in options.items():
        if not table[name].accepts(value):
            raise ValueError(f"{name}={short(value)} is not allowed: it must be {table[name].allowed}.")
    checked = {**{name: option.default for name, option in table.items()}, **options}
    if checked.get("layers_pattern") is not None and checked.get("layers_to_transform") is None:
        raise ValueError("layers_pattern needs layers_to_transform: it says in which list of layers these are.")
    if isinstance(checked.get("target_modules"), str) and checked.get("layers_to_transform") is not None:
        raise ValueError("layers_to_transform does not go with target_modules as a regular expression.")
    return checked


def peft_method(
    name: str, description: str, config: str, table: Table, kind: type[PeftMethod] = PeftMethod, **fixed: Any
) -> PeftMethod:
    """A method of PEFT whose options are a table.

    Args:
        name: as in `Method`.
        description: as in `Method`.
        config: the name of PEFT's configuration class.
        table: the options; one that is None is left to PEFT.
        kind: the class of the method.
        fixed: fields of the configuration that are no options.
    """

    def make_config(**options: Any) -> Any:
        import peft

        check({option: value for option, value in options.items() if option in table}, table)
        given = {option: value for option, value in options.items() if value is not None}
        return getattr(peft, config)(**given, **fixed)

    defaults = {option: value.default for option, value in table.items()}
    return kind(name, description, make_config, lambda: table, lambda: defaults)
