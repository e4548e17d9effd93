"""How the settings of a study are tuned: the values that each tries, and how many runs it has for that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ...train.recipe import Section, Seed, Size

Value = str | int | float | bool


class Range(Section):
    """A range to draw from, on a linear or logarithmic scale."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high, and above 0 with log")
        return self


Space = dict[str, Range | Annotated[tuple[Value, ...], Field(strict=False)]]


def check_space(space: Space) -> Space:
    """Raise an error for a field without values, or with two whose runs would be in one folder and count twice."""
    for field, values in space.items():
        if isinstance(values, tuple) and (why := _wrong_values(field, values)):
            raise PydanticCustomError("below", "{field}: {why}", {"field": field, "why": why})
    return space


def _wrong_values(field: str, values: Sequence[Value]) -> str | None:
    if not values:
        return "give at least one value"
    by_folder: dict[str, Value] = {}
    for value in values:
        folder = folder_name({field: value})
        if folder in by_folder:
            first = by_folder[folder]
            if (type(first), first) == (type(value), value):
                return f"{value!r} is given twice"
            return f"the runs of {first!r} and {value!r} would have one folder, {folder}"
        by_folder[folder] = value
    return None


class Tuning(Section):
    """How each setting is tuned: on one seed, by a validation score of the form that it deploys."""

    budget: Size
    """Runs for each setting."""
    space: Space
    """Dotted fields of the recipe, each with a list of values, or a range: `{low: 1e-4, high: 1e-2, log: true}`."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Of Optuna. A grid takes lists alone, and the budget is the number of its points."""
    seed: Seed = 0
    """Of the runs, and of the sampler."""
    metric: str | None = None
    """Of the validation scores: what the values are chosen by; `null`: the task's own. The epoch of each run is chosen
    by its `training.select_by`, with which this must be given."""
    each_form: bool = False
    """Whether each form of AuroRA has the values that its own validation scores choose, and not those of the deployed
    form; every distinct choice is run over the seeds."""
    finalists: Size = 1
    """How many of the best values of a setting, and of such a form, are run over all seeds: of several, the best mean
    validation score over the seeds decides. On one seed the second best may be ahead by chance."""

    @field_validator("space")
    @classmethod
    def _distinct_values(cls, space: Space) -> Space:
        return check_space(space)

    @model_validator(mode="after")
    def _fits(self) -> Tuning:
        self.check_grid(self.space)
        if self.finalists > self.budget:
            raise ValueError(f"finalists={self.finalists} is not allowed: budget={self.budget} values are tried")
        return self

    def check_grid(self, space: Space) -> None:
        """Raise a ValueError for a grid that is not as large as the budget."""
        if self.sampler == "grid":
            if ranges := [field for field, values in space.items() if isinstance(values, Range)]:
                raise ValueError(f"{ranges[0]}: a grid needs a list of values, not a range")
            size = math.prod(len(values) for values in space.values() if isinstance(values, tuple))
            if size != self.budget:
                raise ValueError(f"budget={self.budget} is not allowed: the grid has {size} points")


def points(space: Space) -> list[dict[str, Any]]:
    """The first value of every field, and each of the others in its place."""
    samples = {field: _samples(values) for field, values in space.items()}
    first = {field: values[0] for field, values in samples.items()}
    return [first, *({**first, field: value} for field, values in samples.items() for value in values[1:])]


def _samples(values: Range | tuple[Value, ...]) -> tuple[Value, ...]:
    """Every value that may be proposed; of a range its ends and one between them, which no whole number allows."""
    if isinstance(values, tuple):
        return values
    return values.low, values.high, values.low + (values.high - values.low) / math.pi


def point(values: Mapping[str, Any]) -> str:
    """Tuned values in one word: `learning_rate=0.005`; by their whole names where the last parts are the same."""
    ends = [field.rpartition(".")[2] for field in values]
    shown = {
        end if ends.count(end) == 1 else field: value for (field, value), end in zip(values.items(), ends, strict=True)
    }
    return ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )


def folder_name(values: Mapping[str, Any]) -> str:
    """Tuned values as the name of the folder of their runs."""
    return point(values).replace("/", "-") or "as-given"
