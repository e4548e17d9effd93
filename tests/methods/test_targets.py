"""Options that name modules which are not there."""

from collections.abc import Callable
from typing import Any

import pytest

from aurora_lora.methods.targets import check_modules

MakeModel = Callable[[str], Any]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query", "valu"]}, "target_modules: 'valu' is an unknown module; did you mean 'value'?"),
        ({"target_modules": ".*qery"}, "target_modules='.*qery' matches no module of "),
        ({"modules_to_save": ["nope"]}, r"modules_to_save: 'nope' is an unknown module \(allowed: "),
        ({"rank_pattern": {"querry": 2}}, "rank_pattern: 'querry' is an unknown module; did you mean 'query'?"),
    ],
)
def test_names_of_nothing(make_model: MakeModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_modules(make_model("bert"), options)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query", "attention.self.value"], "modules_to_save": ["classifier"]},
        {"target_modules": r".*\.query", "exclude_modules": r".*\.0\..*"},
        {"target_modules": "all-linear", "rank_pattern": {"query": 2, r"layer\.0\..*value": 3}},
        {"target_modules": ["query"], "layers_to_transform": [0, 1], "layers_pattern": "layer"},
        {"target_modules": None, "layers_to_transform": None},
        {},
    ],
)
def test_names_of_something(make_model: MakeModel, options: dict[str, Any]) -> None:
    check_modules(make_model("bert"), options)
