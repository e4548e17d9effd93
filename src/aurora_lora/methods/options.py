"""The options of methods: pydantic models, each field with its default, and an error that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import unknown
from ..field_errors import allowed
from ..tuner.config import MAX_RANK, MODULE_FIELDS, PATTERN_FIELDS, is_index, is_pattern
from ..values import is_number, short

Options = Mapping[str, Any]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""A probability below 1."""


def that(accepts: Callable[[Any], bool], words: str) -> AfterValidator:
    """What goes with a type in `Annotated` to take what `accepts` accepts, `words` such as "a list of names"."""

    def check(value: Any) -> Any:
        if not accepts(value):
            raise PydanticCustomError("option", "{words}", {"words": words})
        return value

    return AfterValidator(check)


def _modules(name: str, *, may_be_empty: bool = True) -> AfterValidator:
    """What goes with a field of PEFT that says which modules, layers or tokens, or is None."""
    accepts, words = MODULE_FIELDS[name]
    return that(
        lambda value: value is None or (accepts(value) and (may_be_empty or is_index(value) or bool(value))),
        f"{words}, or null",
    )


def _by_pattern(words: str, accepts: Callable[[Any], bool]) -> AfterValidator:
    def is_allowed(value: Any) -> bool:
        return isinstance(value, dict) and all(is_pattern(name) and accepts(one) for name, one in value.items())

    return that(is_allowed, f"{words} by names of modules or regular expressions")


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
            wrong = error.errors(include_url=False)[0]
            if not wrong["loc"]:
                raise ValueError(wrong["msg"]) from error
            given = f"{wrong['loc'][0]}={short(wrong['input'])}"
            raise ValueError(f"{given} is not allowed: it must be {allowed(wrong)}.") from error


class Targets(Fields):
    """Which modules are adapted: PEFT's names and meanings. None leaves the choice to the model's architecture."""

    # an empty list adapts nothing, which is a mistake
    target_modules: Annotated[Any, _modules("target_modules", may_be_empty=False)] = None
    exclude_modules: Annotated[Any, _modules("exclude_modules", may_be_empty=False)] = None
    layers_to_transform: Annotated[Any, _modules("layers_to_transform", may_be_empty=False)] = None
    layers_pattern: Annotated[Any, _modules("layers_pattern", may_be_empty=False)] = None

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


class LoraFields(LoraBasics):
    """With those that PEFT does not check."""

    modules_to_save: Annotated[Any, _modules("modules_to_save")] = None
    rank_pattern: Annotated[Any, _by_pattern("ranks", PATTERN_FIELDS["rank_pattern"][0])] = {}
    alpha_pattern: Annotated[Any, _by_pattern("finite numbers", is_number)] = {}
    trainable_token_indices: Annotated[Any, _modules("trainable_token_indices")] = None


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
