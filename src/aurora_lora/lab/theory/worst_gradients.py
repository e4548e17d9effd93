"""Proposition 2.2 under attack: how near the gradients of a layer can be brought to their bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...ops import ANL
from .bounds import GRADIENTS, Layer, gradient_bounds, gradient_norms

D_IN, D_OUT, RANK, SCALING = 4, 3, 2, 2.0
Ratios = dict[str, float]


def random_ratios(anl: ANL, draws: int, seed: int) -> Ratios:
    """The largest |gradient| / bound of each gradient over random layers, inputs and targets."""
    free = _draw(draws, anl, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return _named(_ratios(free, anl).amax(0))


def attacked_ratios(anl: ANL, starts: int, steps: int, seed: int, advance: Callable[[], None] = lambda: None) -> Ratios:
    """The largest |gradient| / bound found by gradient ascent on weights, input and target.

    Args:
        anl: what sigma is made of.
        starts: random starting points for each of the five gradients; each climbs the ratio of its own.
        steps: steps of Adam.
        seed: of the starting points.
        advance: is called after each step.
    """
    free = _draw(starts * len(GRADIENTS), anl, torch.Generator().manual_seed(seed))
    aim = torch.arange(len(GRADIENTS)).repeat_interleave(starts).unsqueeze(1)
    for tensor in free:
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(free, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = torch.zeros(len(GRADIENTS), dtype=torch.float64)
    for _ in range(steps):
        ratios = _ratios(free, anl)
        best = torch.maximum(best, ratios.detach().nan_to_num(0.0).amax(0))
        optimizer.zero_grad()
        (-ratios.gather(1, aim).clamp_min(1e-30).log().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance()
    return _named(best)


def growth(seed: int) -> list[dict[str, float]]:
    """The largest |dL/dA| of 100 random layers with B times a scale: bounded for given weights, not for all."""
    rows = []
    for scale in (1.0, 10.0, 100.0):
        row = {"scale": scale}
        for name, anl in (("AuroRA", ANL(skip=False)), ("LoRA", ANL(None, None, skip=True))):
            W0, A, B, H, W, x, y = _draw(100, anl, torch.Generator().manual_seed(seed))
            found = torch.func.vmap(
                lambda *one, anl=anl: gradient_norms(
                    Layer(*one[:5]), _into_ball(one[5]), _into_ball(one[6]), anl, SCALING
                )
            )(W0, A, scale * B, H, W, x, y)
            row[name] = float(found[:, 0].max())
        rows.append(row)
    return rows


def _draw(n: int, anl: ANL, generator: torch.Generator) -> list[Tensor]:
    """n layers with weights of very different sizes, and for each an x and a y, still outside the unit ball."""
    shapes = ((D_OUT, D_IN), (RANK, D_IN), (D_OUT, RANK), (RANK, RANK), (RANK, anl.n_basis), (D_IN,), (D_OUT,))
    drawn = []
    for shape in shapes:
        size = torch.empty(n, *(1 for _ in shape), dtype=torch.float64).uniform_(-2, 1, generator=generator)
        drawn.append(10**size * torch.randn(n, *shape, dtype=torch.float64, generator=generator))
    return drawn


def _ratios(free: list[Tensor], anl: ANL) -> Tensor:
    """|gradient| / bound, (n, 5); x and y are drawn into the unit ball."""

    def one(*tensors: Tensor) -> Tensor:
        *weights, x, y = tensors
        layer = Layer(*weights)
        bounds = gradient_bounds(layer, 1.0, 1.0, anl, SCALING)
        return gradient_norms(layer, _into_ball(x), _into_ball(y), anl, SCALING) / bounds.clamp_min(1e-300)

    found: Tensor = torch.func.vmap(one)(*free)
    return found


def _into_ball(v: Tensor) -> Tensor:
    return v / (1 + v.square().sum()).sqrt()


def _named(ratios: Tensor) -> Ratios:
    return dict(zip(GRADIENTS, ratios.tolist(), strict=True))
