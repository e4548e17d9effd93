"""Appendix C's two-by-two case."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.ops import adaptive_nonlinear
from theory.rank_one import (
    REACHES,
    check_cases,
    check_reach,
    inverse_leaky_relu,
    lora,
    merged,
    printed,
)

NUMBERS = st.floats(-10, 10)


def leaky(value: float, alpha: float) -> float:
    return value if value > 0 else alpha * value


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_the_four_matrices_are_loras(a1: float, a2: float, b1: float, b2: float, alpha: float) -> None:
    a, b = torch.tensor([[a1, a2]], dtype=torch.float64), torch.tensor([[b1, b2]], dtype=torch.float64)
    slope = torch.tensor([alpha], dtype=torch.float64)
    update = merged(a, b, slope)
    by_hand = torch.tensor([[[row * leaky(entry, alpha) for entry in (a1, a2)] for row in (b1, b2)]])
    torch.testing.assert_close(update, by_hand.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(printed(a, b, slope).mT, update)  # the paper prints the transpose
    assert abs(float(torch.linalg.det(update))) < 1e-9
    torch.testing.assert_close(merged(inverse_leaky_relu(a, slope), b, slope), lora(a, b))


def test_cases() -> None:
    rows = check_cases(400, 0)
    assert [row["case"] for row in rows] == ["+ +", "- +", "+ -", "- -"]
    assert sum(row["draws"] for row in rows) == 400
    for row in rows:
        assert row["draws"] > 50
        assert row["as_printed"] > 1
        for name in ("transposed", "second_singular_value", "lora_reaches_it", "it_reaches_lora"):
            assert row[name] < 1e-12


def test_reach() -> None:
    distances = {row["sigma"]: row["distance"] for row in check_reach(2)}
    for name in ("LoRA", "tanh", "leaky_relu", "spline"):
        assert distances[name] < 1e-3, name
    for name in ("relu", "sigmoid"):
        assert distances[name] == pytest.approx(math.sqrt(0.5), abs=1e-6)


@given(st.sampled_from(["relu", "sigmoid"]), NUMBERS, NUMBERS, NUMBERS, st.floats(-100, 100), st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_one_sign_misses_a_column(name: str, a1: float, a2: float, h: float, b1: float, b2: float) -> None:
    A, H = torch.tensor([[a1, a2]], dtype=torch.float64), torch.tensor([[h]], dtype=torch.float64)
    update = torch.tensor([[b1], [b2]], dtype=torch.float64) @ adaptive_nonlinear(A.T, H, None, REACHES[name]).T
    target = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64) / 2
    assert float((target - update).norm()) >= math.sqrt(0.5) - 1e-9
