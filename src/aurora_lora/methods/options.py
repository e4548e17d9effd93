"""The options of a method: pydantic fields, each with its default, and an error that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from ..field_errors import allowed
from ..tuner.config import MAX_RANK, MODULE_FIELDS, PATTERN_FIELDS, is_index, is_pattern
from ..values import is_number, short
from .base import BY_INPUTS, NEAREST, Options, PeftMethod, check_names

Table = Mapping[str, tuple[Any, Any]]
"""The type of each option, and its default."""


def integer(default: int | None, least: int = 1, most: int = 2**31 - 1) -> tuple[Any, Any]:
    """A whole number of at least `least`, and at most `most`."""
    return Annotated[int, Field(ge=least, le=most)], default


def rank(default: int) -> tuple[Any, Any]:
    """A rank."""
    return integer(default, most=MAX_RANK)


def optional_integer() -> tuple[Any, Any]:
    """A whole number of at least 1, or None."""
    return integer(None)[0] | None, None


def number(
    default: float, *, gt: float | None = None, ge: float | None = None, lt: float | None = None, le: float = 1e30
) -> tuple[Any, Any]:
    """A finite number within these limits, as pydantic has them."""
    return Annotated[float, Field(gt=gt, ge=ge, lt=lt, le=le, allow_inf_nan=False)], default


def positive(default: float) -> tuple[Any, Any]:
    """A finite number above 0."""
    return number(default, gt=0)


def dropout(default: float = 0.0) -> tuple[Any, Any]:
    """A probability below 1."""
    return number(default, ge=0, lt=1)


def choice(default: str, *others: str) -> tuple[Any, Any]:
    """A field that takes one of a few words."""
    return Literal[(default, *others)], default


def that(accepts: Callable[[Any], bool], words: str) -> Any:
    """The type of what `accepts` accepts, `words` such as "a list of names"."""

    def check(value: Any) -> Any:
        if not accepts(value):
            raise PydanticCustomError("option", "{words}", {"words": words})
        return value

    return Annotated[Any, AfterValidator(check)]


def or_none(words: str, accepts: Callable[[Any], bool]) -> tuple[Any, Any]:
    """What `accepts` accepts, or None."""
    return that(lambda value: value is None or accepts(value), f"{words}, or null"), None


def _field(name: str) -> tuple[Any, Any]:
    """A field of PEFT that says which modules, layers or tokens."""
    accepts, words = MODULE_FIELDS[name]
    return or_none(words, accepts)


def _target(name: str) -> tuple[Any, Any]:
    """One that says what is adapted: a recipe that adapts nothing is a mistake."""
    accepts, words = MODULE_FIELDS[name]
    return or_none(words, lambda value: accepts(value) and (is_index(value) or bool(value)))


TARGETS: Table = {
    name: _target(name) for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
}
"""Which modules are adapted: PEFT's names and meanings. None leaves the choice to the model's architecture."""


def _of_patterns(words: str, accepts: Callable[[Any], bool]) -> tuple[Any, Any]:
    def is_allowed(value: Any) -> bool:
        return isinstance(value, dict) and all(is_pattern(name) and accepts(one) for name, one in value.items())

    return that(is_allowed, f"{words} by names of modules or regular expressions"), {}


MORE: Table = {
    "modules_to_save": _field("modules_to_save"),
    "rank_pattern": _of_patterns("ranks", PATTERN_FIELDS["rank_pattern"][0]),
    "alpha_pattern": _of_patterns("finite numbers", is_number),  # PEFT has no bound
    "trainable_token_indices": _field("trainable_token_indices"),
}
"""Further fields of `LoraConfig` that PEFT does not check."""

LOW_RANK: Table = {"r": rank(8), "alpha": positive(8), "dropout": dropout(), **TARGETS}
"""Rank, scaling alpha / r, and dropout on x, as in LoRA."""


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="after")
    def _layers_go_together(self) -> _Fields:
        given = dict(self)
        if given.get("layers_pattern") is not None and given.get("layers_to_transform") is None:
            why = "layers_pattern needs layers_to_transform: it says in which list of layers these are."
            raise PydanticCustomError("option", "{why}", {"why": why})
        if isinstance(given.get("target_modules"), str) and given.get("layers_to_transform") is not None:
            why = "layers_to_transform does not go with target_modules as a regular expression."
            raise PydanticCustomError("option", "{why}", {"why": why})
        return self


Fields = type[BaseModel]


def fields(table: Table) -> Fields:
    """The options of a table as one pydantic model."""
    made: Fields = create_model("Options", __base__=_Fields, **dict(table))  # type: ignore[call-overload]
    return made


def defaults(of: Fields) -> dict[str, Any]:
    """The default of each option."""
    return {name: field.default for name, field in of.model_fields.items()}


def check(options: Options, of: Fields) -> dict[str, Any]:
    """The options as they were given, with the defaults of the others filled in.

    Raises:
        ValueError: an unknown option or a value that is not allowed; the message names the option.
    """
    check_names(options, of.model_fields)
    try:
        of.model_validate(dict(options))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        if not wrong["loc"]:
            raise ValueError(wrong["msg"]) from error
        given = f"{wrong['loc'][0]}={short(wrong['input'])}"
        raise ValueError(f"{given} is not allowed: it must be {allowed(wrong)}.") from error
    return {**defaults(of), **options}


def peft_method(
    name: str,
    description: str,
    config: str,
    table: Table,
    kind: type[PeftMethod] = PeftMethod,
    *,
    is_trained_quantised: bool = True,
    quantised_merges: Collection[str] = (NEAREST, BY_INPUTS),
    **fixed: Any,
) -> PeftMethod:
    """A method of PEFT whose options are a table.

    Args:
        name: as in `Method`.
        description: as in `Method`.
        config: the name of PEFT's configuration class.
        table: the options; one that is None is left to PEFT.
        kind: the class of the method.
        is_trained_quantised: as in `PeftMethod`.
        quantised_merges: as in `PeftMethod`.
        fixed: fields of the configuration that are no options.
    """
    own = fields(table)

    def make_config(**options: Any) -> Any:
        import peft

        check({option: value for option, value in options.items() if option in table}, own)
        given = {option: value for option, value in options.items() if value is not None}
        return getattr(peft, config)(**given, **fixed)

    own_defaults = defaults(own)
    return kind(name, description, make_config, table.keys(), own_defaults, is_trained_quantised, quantised_merges)
