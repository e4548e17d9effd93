"""What is said of wrong fields: one line for each mistake, in whatever model."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from aurora_lora.errors import UserError
from aurora_lora.field_errors import validated


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Span(_Section):
    low: float
    high: float

    @field_validator("high")
    @classmethod
    def _positive(cls, high: float) -> float:
        if high == 0:
            raise ValueError("it is the high end, and 0")
        if high < 0:
            raise PydanticCustomError("below", "{why}", {"why": "sign: it is below 0"})
        return high


class Part(_Section):
    base: str = Field(default="a", alias="model", min_length=1)
    spans: dict[str, Span | Annotated[tuple[str | int, ...], Field(strict=False)]] = Field(default_factory=dict)
    every: Literal["epoch"] | Annotated[int, Field(gt=0)] | None = None


class Whole(_Section):
    parts: Annotated[tuple[Part, ...], Field(min_length=1, strict=False)]
    numbers: Annotated[list[int], Field(max_length=3)] = Field(default_factory=list)
    other: Span | Part | None = None


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"parts": [{"modle": "a"}]}, ["parts.0.modle: unknown field; did you mean 'model'?"]),
        (
            {"parts": [{}, {"model": ""}]},
            ["parts.1.model: '' is not allowed: it must be of at least 1 character"],
        ),
        ({"parts": []}, ["parts: [] is not allowed: it must be of at least 1 item"]),
        ({"parts": [{"every": "x"}]}, ["parts.0.every: 'x' is not allowed: it must be 'epoch' or a valid integer"]),
        (
            {"parts": [{"spans": {"tuple": [None]}}]},
            ["parts.0.spans.tuple.0: None is not allowed: it must be a valid string or a valid integer"],
        ),
        (
            {"parts": [{"spans": {"a": {"low": 1, "hihg": 2}}}]},
            [
                "parts.0.spans.a.high: this field must be given",
                "parts.0.spans.a.hihg: unknown field; did you mean 'high'?",
            ],
        ),
        ({"parts": [{"spans": {"a": {"low": 0, "high": 0}}}]}, ["parts.0.spans.a.high: it is the high end, and 0"]),
        ({"parts": [{"spans": {"a": {"low": 0, "high": -1}}}]}, ["parts.0.spans.a.high.sign: it is below 0"]),
        (
            {"parts": [{}], "numbers": ["a", 1, "b"]},
            [
                "numbers.0: 'a' is not allowed: it must be a valid integer",
                "numbers.2: 'b' is not allowed: it must be a valid integer",
            ],
        ),
        ({}, ["parts: this field must be given"]),
        (3, ["3 is not allowed: it must be a section with fields"]),
    ],
)
def test_one_line_for_each_mistake(given: Any, lines: list[str]) -> None:
    with pytest.raises(UserError) as error:
        validated(Whole, given, "x.yaml")
    assert str(error.value).splitlines() == [f"x.yaml: {line}" for line in lines]
