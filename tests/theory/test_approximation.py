"""Proposition 2.1: what no adapter passes, what the best linear map is, and what a search finds between the two."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.ops import ANL
from theory.approximation import (
    Adapter,
    best_linear,
    isotropic_inputs,
    linear_floor,
    mean_square,
    output_floor,
    supremum,
    update,
)
from theory.checks import every_anl, linear_matrix, nonlinear_targets, slip
from theory.search import fit, fit_supremum

SEEDS = st.integers(0, 2**32 - 1)
SIGMAS = st.sampled_from(every_anl())


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def any_adapter(generator: torch.Generator, r: int, d_in: int, d_out: int, anl: ANL, size: float) -> Adapter:
    shapes = ((r, d_in), (d_out, r), (r, r), (r, anl.n_basis))
    return Adapter(*(size * normal(generator, *shape) for shape in shapes))


@given(SEEDS, SIGMAS, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 10))
@settings(max_examples=100, deadline=None)
def test_no_adapter_passes_the_floors(seed: int, anl: ANL, r: int, d_in: int, d_out: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    M = normal(generator, d_out, d_in)
    x = isotropic_inputs(3 * d_in + 1, d_in, generator)
    values = np.linalg.svd(M.numpy(), compute_uv=False)
    least, least_supremum = linear_floor(M, r)
    assert least == pytest.approx(float((values[r:] ** 2).sum()))
    assert least_supremum == pytest.approx(values[r] if len(values) > r else 0.0)
    adapter = any_adapter(generator, r, d_in, d_out, anl, size)
    assert mean_square(x @ M.T - update(adapter, x, anl)) >= least * (1 - 1e-9)
    assert supremum(adapter, M, anl, generator, starts=2, steps=3) >= least_supremum * (1 - 1e-9)
    f = normal(generator, 20, d_out).exp()
    inputs = normal(generator, 20, d_in)
    assert mean_square(f - update(adapter, inputs, anl)) >= output_floor(f, r) * (1 - 1e-9)


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_no_linear_map_of_that_rank_is_better_than_the_best(seed: int, r: int, d_in: int, d_out: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, 40, d_in) @ normal(generator, d_in, d_in) + 0.3 * normal(generator, 40, d_in)
    f = torch.sin(x @ normal(generator, d_in, d_out))
    best = best_linear(x, f, r)
    assert np.linalg.matrix_rank(best.numpy(), tol=1e-9) <= r
    least = mean_square(f - x @ best.T)
    hidden = x @ normal(generator, d_in, r)  # any A, and the best B for it
    B = torch.linalg.lstsq(hidden, f, driver="gelsd").solution
    assert mean_square(f - hidden @ B) >= least * (1 - 1e-9)
    U, V = torch.linalg.svd(best)[0][:, :r], torch.linalg.svd(best)[2][:r]
    nearby = (U + 0.01 * normal(generator, *U.shape)) @ (U.T @ best @ V.T) @ (V + 0.01 * normal(generator, *V.shape))
    assert mean_square(f - x @ nearby.T) >= least * (1 - 1e-9)


def test_best_linear_map_of_any_rank_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x, f = normal(generator, 50, 4), normal(generator, 50, 3)
    expected = np.linalg.lstsq(x.numpy(), f.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(best_linear(x, f).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(
    "anl", [ANL(None, None, skip=True), ANL("tanh", None, skip=False), ANL("relu", skip=True), ANL(skip=False)]
)
def test_a_search_comes_to_the_floor_of_a_linear_target_and_stays_above(anl: ANL) -> None:
    M = linear_matrix(1)
    x = isotropic_inputs(64, 6, torch.Generator().manual_seed(1))
    floor, least_supremum = linear_floor(M, 2)
    svd = best_linear(x, x @ M.T, 2)
    assert mean_square(x @ (M - svd).T) == pytest.approx(floor, rel=1e-12)
    searches = [fit(x, x @ M.T, 2, anl, seed) for seed in (None, 0)]
    errors = [error / floor for _, error in searches]
    assert min(errors) >= 1 - 1e-12
    assert min(errors) < 1.05
    found, sup = fit_supremum(searches[0][0], M, anl, 0, points=64, iterations=30)
    assert sup >= least_supremum * (1 - 1e-12)
    assert sup <= supremum(searches[0][0], M, anl, torch.Generator().manual_seed(5)) * (1 + 1e-9)
    assert found.A.shape == (2, 6)


def test_on_nonlinear_targets_the_nonlinearity_wins() -> None:
    x = isotropic_inputs(200, 6, torch.Generator().manual_seed(2))
    f = nonlinear_targets(2)["tanh teacher"](x)
    linear = mean_square(f - x @ best_linear(x, f, 2).T)
    _, error = min((fit(x, f, 2, ANL(skip=False), seed) for seed in (None, 0, 1)), key=lambda pair: pair[1])
    assert output_floor(f, 2) * (1 - 1e-9) <= error < 0.1 * linear


def test_the_residual_is_no_function_of_z() -> None:
    generator = torch.Generator().manual_seed(3)
    M = linear_matrix(3)
    found: dict[str, Any] = slip(M, any_adapter(generator, 2, 6, 6, ANL(skip=False), 1.0))
    assert found["difference_of_z"] < 1e-12
    assert found["difference_of_outputs"] < 1e-12
    assert found["difference_of_targets"] >= 2 * linear_floor(M, 2)[1] * (1 - 1e-9)
