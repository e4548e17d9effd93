"""The best adapter B sigma(A x) that hard optimisation finds for a target."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from aurora_lora.ops import ANL, adaptive_nonlinear

from .approximation import Adapter, best_linear, mean_square, supremum, update

ITERATIONS = 200
"""The most iterations of `fit`."""


def fit(x: Tensor, f: Tensor, r: int, anl: ANL, seed: int | None) -> tuple[Adapter, float]:
    """Minimise E|f(x) - B sigma(A x)|^2 over A, B, H and W_s: L-BFGS on A, H and W_s, with the best B for them.

    Args:
        x: (n, d_in), in float64.
        f: (n, d_out), the targets.
        r: rank.
        anl: what sigma is made of.
        seed: of a random start; None starts at the best linear map, with A so small that sigma is all but linear.

    Returns:
        The adapter and its mean square error; infinity where the search went astray.
    """
    start = _linear_start(x, f, r, anl) if seed is None else _random_start(x.shape[1], r, anl, seed)
    A, H, W = _free(start)

    def adapter() -> Adapter:
        hidden = adaptive_nonlinear(x @ A.T, H, W, anl)
        # The least-squares B has no slope in the error: it is held fixed for the gradient of the others.
        return Adapter(A, _least_squares(hidden.detach(), f).T, H, W)

    _minimize([A, H, W], lambda: (f - update(adapter(), x, anl)).square().sum(1).mean(), ITERATIONS)
    found = _detached(adapter())
    error = mean_square(f - update(found, x, anl))
    return found, error if math.isfinite(error) else math.inf


def fit_best(x: Tensor, f: Tensor, r: int, anl: ANL, seeds: Iterable[int | None]) -> tuple[Adapter, float]:
    """The best of several `fit`s."""
    return min((fit(x, f, r, anl, seed) for seed in seeds), key=lambda found: found[1])


def fit_supremum(
    adapter: Adapter, M: Tensor, anl: ANL, seed: int, points: int = 256, iterations: int = 100
) -> tuple[Adapter, float]:
    """Lower the supremum of |M x - B sigma(A x)| over the unit ball: L-BFGS on the 16-norm over points of it.

    Returns:
        The better of the two adapters, and its supremum as `supremum` finds it.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(points, M.shape[1], dtype=torch.float64, generator=generator)
    x = torch.cat([x / x.norm(dim=1, keepdim=True), torch.linalg.svd(M)[2]])
    x = torch.cat([x, -x, 0.5 * x])
    f = x @ M.T
    free = Adapter(*_free(adapter))

    def norm() -> Tensor:
        return (f - update(free, x, anl)).square().sum(1).pow(8).mean().pow(1 / 16)

    _minimize(free, norm, iterations)
    ends = [one for one in (adapter, _detached(free)) if all(weight.isfinite().all() for weight in one)]
    return min(((one, supremum(one, M, anl, generator)) for one in ends), key=lambda pair: pair[1])


def _least_squares(hidden: Tensor, f: Tensor) -> Tensor:
    """The (r, d_out) that hidden (n, r) takes to f (n, d_out); not a number once a search has overflowed."""
    if not hidden.isfinite().all():
        return torch.full((hidden.shape[1], f.shape[1]), math.nan, dtype=f.dtype)
    solution: Tensor = torch.linalg.lstsq(hidden, f, driver="gelsd").solution
    return solution


def _free(weights: Iterable[Tensor]) -> list[Tensor]:
    """Copies to optimise; LBFGS wants them contiguous."""
    return [weight.clone(memory_format=torch.contiguous_format).requires_grad_() for weight in weights]


def _minimize(free: Iterable[Tensor], objective: Callable[[], Tensor], iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        free,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)


def _random_start(d_in: int, r: int, anl: ANL, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    size = 10 ** float(torch.empty(1).uniform_(-1.0, 0.3, generator=generator))  # of z, from linear to saturated
    return size / d_in**0.5 * normal(r, d_in), normal(r, r), 0.3 * normal(r, anl.n_basis)


def _linear_start(x: Tensor, f: Tensor, r: int, anl: ANL) -> tuple[Tensor, Tensor, Tensor]:
    _, _, Vh = torch.linalg.svd(best_linear(x, f, r))
    ramp = torch.linspace(-1, 1, anl.n_basis, dtype=torch.float64)  # a spline that is linear near 0
    return 1e-2 * Vh[:r], torch.eye(r, dtype=torch.float64), ramp.repeat(r, 1)


def _detached(adapter: Adapter) -> Adapter:
    return Adapter(*(weight.detach().clone() for weight in adapter))
