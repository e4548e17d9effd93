"""Proposition 2.2: closed-form bounds on the gradients of one AuroRA layer.

For the loss of Appendix E, 1/2 |f(x) - y|^2 with f(x) = W0 x + s B sigma(A x), |x| <= X and |y| <= Y, write |.| for the
Euclidean norm, |.|_2 for the spectral norm of a matrix, c for the largest slope of the activation (tanh: 1), h for the
grid step and dW for the differences of neighbouring spline weights, the ends included:

    |sigma(z)| <= S0,  |dsigma/dz|_2 <= S1 = [1 +] c^2 |H|_2 + max |dW| / h,   E = |W0|_2 X + s |B|_2 S0 + Y,

    |dL/dA| <= s |B|_2 E S1 X,    |dL/dB| <= s E S0,     |dL/dH| <= s |B|_2 E c |phi(z)|,
    |dL/dW_s| <= s |B|_2 E |B(z)|,    |dL/dx| <= E (|W0|_2 + s |B|_2 S1 |A|_2).

Two facts on the spline are used: its values lie between the weights' (partition of unity), so |L| <= max |W_s|; and its
derivative is a spline of one degree less, whose weights are dW / h. With the summed reading, r of them add up.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from aurora_lora.ops import ANL, adaptive_nonlinear, bspline_basis

GRADIENTS = ("A", "B", "H", "spline_weight", "x")
"""What the gradients are taken of, in the order of `gradient_norms` and `gradient_bounds`."""

SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0, "leaky_relu": 1.0}
"""The largest slope of each activation."""


class Layer(NamedTuple):
    """The weights of one adapted layer, in float64.

    Attributes:
        W0: (d_out, d_in), frozen.
        A: (r, d_in).
        B: (d_out, r).
        H: (r, r), unused without the fixed part.
        spline_weight: W_s, (r, K), unused without the learnable part.
    """

    W0: Tensor
    A: Tensor
    B: Tensor
    H: Tensor
    spline_weight: Tensor


def loss(layer: Layer, x: Tensor, y: Tensor, anl: ANL, scaling: float) -> Tensor:
    """1/2 |W0 x + s B sigma(A x) - y|^2 (Appendix E), for x (d_in,) and y (d_out,)."""
    z = adaptive_nonlinear(layer.A @ x, layer.H, layer.spline_weight, anl)
    residual = layer.W0 @ x + scaling * (layer.B @ z) - y
    return 0.5 * residual.square().sum()


def gradient_norms(layer: Layer, x: Tensor, y: Tensor, anl: ANL, scaling: float) -> Tensor:
    """The Frobenius norms of the gradients of `loss`, by autograd, (5,) in the order of `GRADIENTS`."""
    by_layer, by_x = torch.func.grad(loss, argnums=(0, 1))(layer, x, y, anl, scaling)
    found = (by_layer.A, by_layer.B, by_layer.H, by_layer.spline_weight, by_x)
    return torch.stack([_norm(gradient) for gradient in found])


def gradient_bounds(layer: Layer, x_max: float, y_max: float, anl: ANL, scaling: float) -> Tensor:
    """The bounds above, for every x with |x| <= x_max and y with |y| <= y_max, (5,) in the order of `GRADIENTS`."""
    A, B, W0 = (torch.linalg.matrix_norm(weight, ord=2) for weight in (layer.A, layer.B, layer.W0))
    values, phi = sigma_bound(layer, x_max, anl)
    slope = slope_bound(layer, anl)
    residual = W0 * x_max + scaling * B * values + y_max
    through = scaling * B * residual
    c = SLOPES.get(anl.fixed_activation or "", 0.0)
    r = layer.A.shape[0]
    basis = basis_bound(anl) * (1 if anl.spline == "channelwise" else r) if anl.spline is not None else 0.0
    return torch.stack(
        [
            through * slope * x_max,
            scaling * residual * values,
            through * c * phi,
            through * basis,
            residual * (W0 + scaling * B * slope * A),
        ]
    )


def sigma_bound(layer: Layer, x_max: float, anl: ANL) -> tuple[Tensor, Tensor]:
    """(S0, bound of |phi(z)|): how large sigma and the inner activation can become for |x| <= x_max."""
    reach = layer.A.square().sum(1).sqrt() * x_max  # |z_i| <= |A_i| X
    per_channel = reach if anl.skip else torch.zeros_like(reach)
    phi = torch.zeros_like(reach)
    if anl.fixed_activation is not None:
        phi = _activation_bound(anl.fixed_activation, reach)
        per_channel = per_channel + _activation_bound(anl.fixed_activation, layer.H.abs() @ phi)
    if anl.spline is not None:
        largest = layer.spline_weight.abs().amax(1)
        per_channel = per_channel + (largest if anl.spline == "channelwise" else reach.numel() * largest)
    return _norm(per_channel), _norm(phi)


def slope_bound(layer: Layer, anl: ANL) -> Tensor:
    """S1: the largest that |dsigma/dz|_2 can be, whatever z is."""
    bound = torch.ones_like(layer.A[0, 0]) * float(anl.skip)
    if anl.fixed_activation is not None:
        bound = bound + SLOPES[anl.fixed_activation] ** 2 * torch.linalg.matrix_norm(layer.H, ord=2)
    if anl.spline is not None and anl.spline_order > 0:
        lo, hi = anl.spline_range
        steps = functional.pad(layer.spline_weight, (1, 1)).diff(dim=1) * (anl.spline_grid_size / (hi - lo))
        if anl.spline == "channelwise":
            bound = bound + steps.abs().max()
        else:  # r columns, each W_s B'(z_j)
            bound = bound + layer.A.shape[0] ** 0.5 * steps.square().sum(0).max().sqrt()
    return bound


def basis_bound(anl: ANL) -> float:
    """The largest |B(z)|: the values are not negative and sum to at most 1, so |B|^2 <= max B = beta_p(0)."""
    p = anl.spline_order
    # on the grid [0, 1] of one interval, one of the functions has its peak here
    centre = torch.tensor(0.0 if p % 2 else 0.5, dtype=torch.float64)
    return float(bspline_basis(centre, 1, p, (0.0, 1.0)).max().sqrt())


def _activation_bound(name: str, reach: Tensor) -> Tensor:
    """The largest |act(t)| for |t| <= reach."""
    if name == "sigmoid":
        return torch.sigmoid(reach)
    return torch.tanh(reach) if name == "tanh" else reach


def _norm(tensor: Tensor) -> Tensor:
    """The Euclidean norm, with a gradient (of 0) at 0."""
    square = tensor.square().sum()
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


# ---------------------------------------------------------------- how near the gradients come to their bounds

D_IN, D_OUT, RANK, SCALING = 4, 3, 2, 2.0
Ratios = dict[str, float]


def random_ratios(anl: ANL, draws: int, seed: int) -> Ratios:
    """The largest |gradient| / bound of each gradient over random layers, inputs and targets."""
    free = _draw(draws, anl, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return _named(_ratios(free, anl).amax(0))


def attacked_ratios(anl: ANL, starts: int, steps: int, seed: int) -> Ratios:
    """The largest |gradient| / bound found by gradient ascent on weights, input and target.

    Args:
        anl: what sigma is made of.
        starts: random starting points for each of the five gradients; each climbs the ratio of its own.
        steps: steps of Adam.
        seed: of the starting points.
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
        (-ratios.gather(1, aim).clamp_min(1e-30).log().sum()).backward()
        optimizer.step()
        schedule.step()
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
