"""Rounding to a grid by the inputs, against plain loops of the published algorithm."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_lora import NotFiniteError
from aurora_lora.ops.rounding import Grid, better_grid, input_moment, output_error, round_to_moment

LEVELS = torch.tensor([-1.0, -0.6, -0.2, 0.0, 0.3, 0.5, 1.0])


def weight_and_moment(d_out: int = 5, d_in: int = 12, seed: int = 0, correlated: float = 2.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    weight = torch.randn(d_out, d_in)
    x = torch.randn(300, d_in) @ (torch.eye(d_in) + correlated * torch.randn(d_in, d_in) / d_in**0.5)
    return weight, (x.T @ x / len(x))


def grid_of(weight: Tensor, block: int = 4, levels: Tensor = LEVELS) -> Grid:
    return Grid(levels, weight.reshape(-1, block).abs().amax(-1), block)


def nearest_by_loop(value: float, levels: list[float], scale: float, zero: float = 0.0) -> float:
    return min(((level - zero) * scale for level in levels), key=lambda candidate: abs(candidate - value))


def gptq_by_loop(weight: Tensor, S: Tensor, grid: Grid) -> Tensor:
    """Algorithm 1 of the GPTQ paper, a column at a time, with the whole inverse updated by elimination."""
    weight, inverse = weight.double().clone(), torch.linalg.inv(S.double())
    scale = grid.scale.repeat_interleave(grid.block).view_as(weight)
    rounded = torch.zeros_like(weight)
    left = list(range(weight.shape[1]))
    for j in torch.argsort(S.diagonal(), descending=True, stable=True).tolist():
        left.remove(j)
        for row in range(len(weight)):
            rounded[row, j] = nearest_by_loop(float(weight[row, j]), grid.levels.tolist(), float(scale[row, j]))
            error = (weight[row, j] - rounded[row, j]) / inverse[j, j]
            for k in left:
                weight[row, k] -= error * inverse[j, k]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return rounded.float()


def test_error_feedback_is_the_published_algorithm() -> None:
    weight, moment = weight_and_moment()
    grid = grid_of(weight)
    damping = 1e-2
    codes = round_to_moment(weight, input_moment(moment, damping), grid, sweeps=0)
    damped = moment + damping * moment.diagonal().mean() * torch.eye(len(moment))
    torch.testing.assert_close(grid.dequantised(codes), gptq_by_loop(weight, damped, grid))


def test_more_columns_than_are_updated_at_once() -> None:
    weight, moment = weight_and_moment(3, 300, correlated=1.0)
    grid = grid_of(weight, 100)
    codes = round_to_moment(weight, input_moment(moment, 0.1), grid, sweeps=0)
    damped = moment + 0.1 * moment.diagonal().mean() * torch.eye(len(moment))
    assert (grid.dequantised(codes) == gptq_by_loop(weight, damped, grid)).float().mean() > 0.99  # but for near ties


def test_a_sweep_ends_where_no_column_alone_can_be_bettered() -> None:
    weight, moment = weight_and_moment()
    grid = grid_of(weight)
    inputs = input_moment(moment, 1e-3)
    damped = moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    rounded = grid.dequantised(round_to_moment(weight, inputs, grid, sweeps=20))
    least = output_error(rounded - weight, damped)
    scale = grid.scale.repeat_interleave(grid.block).view_as(weight)
    for row, column in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
        for level in LEVELS:
            other = rounded.clone()
            other[row, column] = level * scale[row, column]
            assert output_error(other - weight, damped) >= least * (1 - 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d_out=st.integers(1, 6),
    blocks=st.integers(1, 5),
    block=st.integers(1, 6),
    correlated=st.floats(0.0, 5.0),
    sweeps=st.integers(0, 3),
)
def test_never_worse_than_the_nearest_values(
    seed: int, d_out: int, blocks: int, block: int, correlated: float, sweeps: int
) -> None:
    weight, moment = weight_and_moment(d_out, blocks * block, seed, correlated)
    grid = grid_of(weight, block)
    inputs = input_moment(moment, 1e-3)
    found, nearest = round_to_moment(weight, inputs, grid, sweeps), grid.round(weight)
    assert found.shape == weight.shape
    damped = moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    for row in range(d_out):  # though feedback, which is greedy, can lose in some
        errors = [output_error((grid.dequantised(codes) - weight)[row : row + 1], damped) for codes in (found, nearest)]
        assert errors[0] <= errors[1] * (1 + 1e-5)


def test_nearest_values_with_zero_points_and_empty_blocks() -> None:
    weight, _ = weight_and_moment(3, 8)
    weight[1, :4] = 0.0
    levels = torch.arange(-8.0, 8.0)
    grid = Grid(levels, weight.view(6, 4).abs().amax(-1) / 8, 4, zero=torch.tensor([0.0, 3.0] * 3))
    expected = [
        [
            nearest_by_loop(float(weight[i, j]), levels.tolist(), float(grid.scale[2 * i + j // 4]), 3.0 * (j // 4))
            for j in range(8)
        ]
        for i in range(3)
    ]
    torch.testing.assert_close(grid.dequantised(grid.round(weight)), torch.tensor(expected))


def test_scales_below_zero() -> None:
    """Where scales are quantised themselves, small ones may come back so."""
    weight, moment = weight_and_moment(3, 8)
    grid = Grid(LEVELS, torch.tensor([1.0, -1.0, -0.5, 0.0, 2.0, -2.0]), 4)
    scales = grid.scale.repeat_interleave(4).view_as(weight)
    expected = torch.tensor(
        [
            [nearest_by_loop(float(w), LEVELS.tolist(), float(s)) for w, s in zip(*rows, strict=True)]
            for rows in zip(weight, scales, strict=True)
        ]
    )
    torch.testing.assert_close(grid.dequantised(grid.round(weight)), expected)
    found = grid.dequantised(round_to_moment(weight, input_moment(moment), grid))
    assert output_error(found - weight, moment) <= output_error(expected - weight, moment)


def test_blocks_that_go_on_from_row_to_row() -> None:
    weight, moment = weight_and_moment(5, 7)  # 35 entries in blocks of 4
    grid = Grid(LEVELS, torch.rand(9) + 0.5, 4)
    entries = weight.flatten().tolist()
    expected = [nearest_by_loop(value, LEVELS.tolist(), float(grid.scale[i // 4])) for i, value in enumerate(entries)]
    torch.testing.assert_close(grid.dequantised(grid.round(weight)).flatten(), torch.tensor(expected))
    better = better_grid(weight, grid, Grid(LEVELS, 1e3 * grid.scale, 4), moment.diagonal())
    assert torch.equal(better.scale, grid.scale)


def test_the_better_grid_is_chosen_block_by_block() -> None:
    weight, moment = weight_and_moment(4, 8)
    good, bad = grid_of(weight), Grid(LEVELS, 5 * grid_of(weight).scale, 4)
    mixed = torch.where(torch.tensor([True, False] * 4), good.scale, bad.scale)
    other = torch.where(torch.tensor([True, False] * 4), bad.scale, good.scale)
    found = better_grid(weight, Grid(LEVELS, mixed, 4), Grid(LEVELS, other, 4), moment.diagonal())
    assert torch.equal(found.scale, good.scale)
    assert torch.equal(better_grid(weight, good, good, moment.diagonal()).scale, good.scale)


@pytest.mark.parametrize(
    "moment",
    [
        torch.eye(4).fill_diagonal_(math.inf),
        torch.full((4, 4), math.nan),
        torch.eye(4, dtype=torch.float64) * 1e308,
    ],
    ids=["infinite", "NaN", "their mean"],
)
def test_moments_that_are_not_finite(moment: Tensor) -> None:
    with pytest.raises(NotFiniteError, match="holds values that are not finite"):
        input_moment(moment)


def test_output_error_is_the_mean_square_of_the_outputs() -> None:
    torch.manual_seed(0)
    difference, x = torch.randn(4, 7), torch.randn(50, 7)
    expected = (x @ difference.T).square().sum(1).mean()
    assert output_error(difference, x.T @ x / 50) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("importance", "scale"), [((0.01, 1.0), 0.4), ((1.0, 0.01), 1.0)])
def test_the_better_grid_is_the_one_for_the_inputs_that_there_are(
    importance: tuple[float, float], scale: float
) -> None:
    """A scale of 1 errs by 0.4 in the second column, one of 0.4 by 0.6 in the first."""
    weight, levels = torch.tensor([[1.0, 0.4]]), torch.tensor([-1.0, 0.0, 1.0])
    one, other = (Grid(levels, torch.tensor([size]), 2) for size in (1.0, 0.4))
    assert float(better_grid(weight, one, other, torch.tensor(importance)).scale[0]) == pytest.approx(scale)
