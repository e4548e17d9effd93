"""The options of methods: pydantic models, each field with its default, and an error that says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import unknown
from ..field_errors import allowed
from ..tuner.config import MAX_RANK
from ..values import short

Options = Mapping[str, Any]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""A probability below 1."""


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise PydanticCustomError("option", "a regular expression") from error
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
Modules = Annotated[list[str], Field(min_length=1)] | Pattern | None
"""Names or a regular expression. An empty list adapts nothing, which is a mistake."""


class Fields(BaseModel):
    """Options of a method: types, limits and defaults."""

    model_config = ConfigDict(strict=True, frozen=True)

    @classmethod
    def names(cls) -> list[str]:
        """Every option."""
        return list(cls.model_fields)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each option."""
        return {name: field.default for name, field in cls.model_fields.items()}

    @classmethod
    def check(cls, options: Options) -> None:
        """Raise a ValueError for a value that is not allowed, which names the option; others than ours pass."""
        try:
            cls.model_validate({name: value for name, value in options.items() if name in cls.model_fields})
        except ValidationError as error:
            first, *others = error.errors(include_url=False)
            if not first["loc"]:
                raise ValueError(first["msg"]) from error
            name = str(first["loc"][0])
            words = dict.fromkeys(allowed(one) for one in (first, *others) if one["loc"][:1] == (name,))
            given = f"{name}={short(options[name])}"
            raise ValueError(f"{given} is not allowed: it must be {' or '.join(words)}.") from error


class Targets(Fields):
    """Which modules are adapted: PEFT's names and meanings. None leaves the choice to the model's architecture."""

    target_modules: Modules = None
    exclude_modules: Modules = None
    layers_to_transform: Natural | Annotated[list[Natural], Field(min_length=1)] | None = None
    layers_pattern: Modules = None

    @model_validator(mode="after")
    def _layers_go_together(self) -> Targets:
        why = None
        if self.layers_pattern is not None and self.layers_to_transform is None:
            why = "layers_pattern needs layers_to_transform: it says in which list of layers these are."
        elif isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            why = "layers_to_transform does not go with target_modules as a regular expression."
        if why:
            raise PydanticCustomError("option", "{why}", {"why": why})
        return self


TARGETS = Targets.names()


class LoraBasics(Targets):
    """Fields of `LoraConfig` that PEFT checks when it builds the layers, in words that name no field."""

    r: Rank = 8
    lora_alpha: Positive = 8
    lora_dropout: Dropout = 0.0


class ModuleFields(Targets):
    """What PEFT trains whole, and how modules differ."""

    modules_to_save: list[Pattern] | None = None
    rank_pattern: dict[Pattern, Rank] = {}
    alpha_pattern: dict[Pattern, Annotated[float, Field(allow_inf_nan=False)]] = {}
    trainable_token_indices: list[Natural] | dict[str, list[Natural]] | None = None


class LoraFields(LoraBasics, ModuleFields):
    """With those that PEFT does not check."""


class LowRank(Targets):
    """Rank, scaling alpha / r, and dropout on x, as in LoRA."""

    r: Rank = 8
    alpha: Positive = 8
    dropout: Dropout = 0.0


def added_fields(config: type) -> list[str]:
    """The fields that a PEFT configuration adds to those of all."""
    from peft.config import PeftConfig

    inherited = {one.name for one in fields(PeftConfig)}
    return [one.name for one in fields(config) if one.init and one.name not in inherited]


def check_names(options: Options, allowed: Iterable[str]) -> None:
    """Raise a ValueError for the first option that is not allowed, with the nearest name that is."""
    known = sorted(allowed)
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: {unknown('option', known, option)}")
