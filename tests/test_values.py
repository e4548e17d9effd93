"""What a value may be, and what is said of one that may not."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from aurora_lora.errors import UserError
from aurora_lora.values import check_loss, is_int, is_number, one_of, require


@pytest.mark.parametrize("value", [0, -1.5, Fraction(1, 2), np.float32(2), np.int64(3)])
def test_numbers(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 10**400, 1j])
def test_what_is_no_number(value: Any) -> None:
    assert not is_number(value)


def test_whole_numbers() -> None:
    assert is_int(np.int64(3), 3, 3)
    assert not any(is_int(value, 0, 3) for value in (True, 2.0, "2", -1, 4))


def test_an_error_names_the_field_the_value_and_what_is_allowed() -> None:
    require(True, "r", 0, "at least 1")
    with pytest.raises(ValueError, match=r"^r=0 is not allowed: it must be at least 1\.$"):
        require(False, "r", 0, "at least 1")
    one_of("form", None, ("static", None))
    for value in ("Static", [], 1):
        with pytest.raises(ValueError, match=r"^form=.* is not allowed: it must be one of 'static', True\.$"):
            one_of("form", value, ("static", True))


def test_a_loss_that_is_no_number_ends_a_training() -> None:
    check_loss(1e30, 3)
    for loss in (math.nan, math.inf, -math.inf):
        said = f"^training diverged: the loss is {loss} at step 3; lower training.learning_rate$"
        with pytest.raises(UserError, match=said):
            check_loss(loss, 3)
