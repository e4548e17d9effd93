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
