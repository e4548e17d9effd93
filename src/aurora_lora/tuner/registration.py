"""Adds AuroRA to PEFT's table of methods, in memory.

PEFT has no entry point for methods from outside: `register_peft_method` wants the name in the `PeftType` enum. Nothing
on disk is changed; what is added lasts as long as the process.
"""

from __future__ import annotations

import enum
from typing import TypeVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from .peft_names import register_peft_method

METHOD = "aurora"
PREFIX = "aurora_"
TAG = "aurora-lora"
"""The tag on every card of an adapter: the package to install."""

E = TypeVar("E", bound=enum.Enum)


def add_string_member(enum_class: type[E], name: str) -> E:
    """Add `name` as a member, with itself as value, to a `str` enum; return the member that is there already.

    The members so made compare, iterate, pickle and look up like those of the class body (Python 3.11 to 3.14).
    """
    if name in enum_class.__members__:
        return enum_class[name]
    member: E = str.__new__(enum_class, name)  # type: ignore[type-var]
    member._name_ = name
    member._value_ = name
    member.__objclass__ = enum_class  # type: ignore[attr-defined]
    member._sort_order_ = len(enum_class._member_names_)  # type: ignore[attr-defined]
    type.__setattr__(enum_class, name, member)  # EnumType.__setattr__ would refuse a member's name
    enum_class._member_map_[name] = member
    enum_class._member_names_.append(name)
    enum_class._value2member_map_[name] = member
    hashable = getattr(enum_class, "_hashable_values_", None)  # Python 3.12 and newer
    if hashable is not None:
        hashable.append(name)
    return member


def register(config_cls: type, model_cls: type) -> None:
    """Register the method with PEFT. Safe to call again; raises where another package has registered this name."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(add_string_member(PeftType, METHOD.upper())) is not config_cls:
        register_peft_method(name=METHOD, config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
