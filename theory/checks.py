"""All that `python -m theory` computes, as one record for its tables and theory.json."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aurora_lora._version import __version__
from aurora_lora.forms import CALIBRATED, DYNAMIC, STATIC
from aurora_lora.ops import ANL, adaptive_nonlinear
from aurora_lora.ops.anl import ACTIVATIONS, SPLINES

from .approximation import Adapter, best_linear, isotropic_inputs, linear_floor, mean_square, output_floor, update
from .gradients import attacked_ratios, growth, random_ratios
from .rank_one import check_cases, check_reach
from .search import fit, fit_best, fit_supremum

Record = dict[str, Any]
Target = Callable[[Tensor], Tensor]

SIZE, RANK = 6, 2
SINGULAR_VALUES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2)
HIDDEN = 32

AURORA = ANL(skip=False)
"""The sigma of the paper."""
SIGMAS = {
    "AuroRA": AURORA,
    "AuroRA, summed": ANL(spline="summed", skip=False),
    "LoRA": ANL(None, None, skip=True),
}
"""What is attacked in the check of Proposition 2.2."""
STUDENTS = {"channelwise": AURORA, "summed": ANL(spline="summed", skip=False)}
"""What is fitted to the nonlinear targets."""
ATTACK_STEPS, ATTACK_STARTS, DRAWS = 400, 16, 10_000
REACH_SEEDS = 6
LINEAR_SEEDS = (None, 0, 1)
SEEDS = (None, 0, 1, 2, 3, 4, 5)
INPUTS, HELD_OUT = 256, 4_096


def every_anl() -> list[ANL]:
    """Every combination of activation, spline and skip that is not zero: 29, plain LoRA among them."""
    options = itertools.product((*ACTIVATIONS, None), (*SPLINES, None), (False, True))
    return [ANL(act, spline, skip=skip) for act, spline, skip in options if act or spline or skip]


def run(seed: int = 0) -> Record:
    """Appendix C, Proposition 2.2 and Proposition 2.1, in this order; about a minute on one core.

    Args:
        seed: of all that is drawn.
    """
    with _one_thread():
        return {
            "schema": 1,
            "versions": {"aurora-lora": __version__, "torch": torch.__version__},
            "seed": seed,
            "appendix_c": {"cases": check_cases(4_000, seed), "reach": check_reach(REACH_SEEDS)},
            "gradients": gradients(seed),
            "linear": linear(seed),
            "nonlinear": {"rank": RANK, "rows": nonlinear(seed)},
        }


def gradients(seed: int) -> Record:
    """Proposition 2.2: the largest |gradient| / bound, at random and under attack."""
    rows = []
    for name, anl in SIGMAS.items():
        attacked = attacked_ratios(anl, ATTACK_STARTS, ATTACK_STEPS, seed)
        rows.append({"sigma": name, "random": random_ratios(anl, DRAWS, seed), "attacked": attacked})
    return {"draws": DRAWS, "starts": ATTACK_STARTS, "steps": ATTACK_STEPS, "rows": rows, "growth": growth(seed)}


def linear(seed: int) -> Record:
    """Proposition 2.1 on a linear target: the least errors found for each sigma, over the bounds that SVD attains."""
    M = linear_matrix(seed)
    x = isotropic_inputs(INPUTS, SIZE, torch.Generator().manual_seed(seed))
    f = x @ M.T
    floor, sup_floor = linear_floor(M, RANK)
    rows = []
    for anl in every_anl():
        found = []
        for start in LINEAR_SEEDS:
            found.append(fit(x, f, RANK, anl, start))
        suprema = [fit_supremum(adapter, M, anl, seed)[1] for adapter, _ in found]
        rows.append(
            {
                "activation": anl.fixed_activation,
                "spline": anl.spline,
                "skip": anl.skip,
                "mean_square": [error / floor for _, error in found],
                "supremum": [one / sup_floor for one in suprema],
            }
        )
    svd = best_linear(x, f, RANK)
    return {
        "rank": RANK,
        "singular_values": SINGULAR_VALUES,
        "floor": {"mean_square": floor, "supremum": sup_floor},
        "svd": {
            "mean_square": mean_square(f - x @ svd.T) / floor,
            "supremum": float(torch.linalg.matrix_norm(M - svd, ord=2)) / sup_floor,
        },
        "rows": rows,
        "slip": slip(M, fit(x, f, RANK, AURORA, None)[0]),
    }


def slip(M: Tensor, adapter: Adapter) -> Record:
    """The proof's step `h(z) = R x`: two inputs with one z, on which the adapter agrees, and R x and M x do not."""
    null = torch.linalg.svd(adapter.A)[2][len(adapter.A) :]  # (d_in - r, d_in), A null^T = 0
    direction = torch.linalg.svd(M @ null.T)[2][0] @ null
    pair = torch.stack([direction, -direction])
    outputs = update(adapter, pair, AURORA)
    return {
        "difference_of_z": float((pair @ adapter.A.T).diff(dim=0).norm()),
        "difference_of_outputs": float(outputs.diff(dim=0).norm()),
        "difference_of_targets": float((pair @ M.T).diff(dim=0).norm()),
    }


def nonlinear(seed: int) -> list[Record]:
    """Proposition 2.1 on nonlinear targets: shares of E|f|^2 on held-out inputs that stay unexplained."""
    x, held_out = _inputs(seed)
    rows = []
    for name, target in nonlinear_targets(seed).items():
        f, g = _centred(target, x, held_out)
        whole = mean_square(g)
        row: Record = {"target": name, "floor": output_floor(g, RANK) / whole}
        for rank in (RANK, 2 * RANK):
            row[f"linear_{rank}"] = mean_square(g - held_out @ best_linear(held_out, g, rank).T) / whole
        for student, anl in STUDENTS.items():
            adapter, _ = fit_best(x, f, RANK, anl, SEEDS)
            forms = {DYNAMIC: update(adapter, held_out, anl), **_merges(adapter, x, held_out, anl)}
            row[student] = {form: mean_square(g - output) / whole for form, output in forms.items()}
        rows.append(row)
    return rows


def _merges(adapter: Adapter, x: Tensor, held_out: Tensor, anl: ANL) -> dict[str, Tensor]:
    """The adapter merged: the paper's static form, and the calibrated one, with x for calibration inputs."""
    hidden = adaptive_nonlinear(x @ adapter.A.T, adapter.H, adapter.spline_weight, anl)
    static = adaptive_nonlinear(adapter.A.T, adapter.H, adapter.spline_weight, anl).T
    calibrated = best_linear(x, hidden)
    return {STATIC: held_out @ static.T @ adapter.B.T, CALIBRATED: held_out @ calibrated.T @ adapter.B.T}


def _inputs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return isotropic_inputs(INPUTS, SIZE, generator), isotropic_inputs(HELD_OUT, SIZE, generator)


def _centred(target: Target, x: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """The target less its mean, so that no adapter wins by a constant alone, which no linear map has."""
    g = target(held_out)
    return target(x) - g.mean(0), g - g.mean(0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors are tiny: more threads than one only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- what the adapters have to imitate


def linear_matrix(seed: int) -> Tensor:
    """A matrix M (6, 6) with the singular values above and random singular vectors."""
    normal = _normal(seed)
    U, V = torch.linalg.qr(normal(SIZE, SIZE))[0], torch.linalg.qr(normal(SIZE, SIZE))[0]
    M: Tensor = U * torch.tensor(SINGULAR_VALUES, dtype=torch.float64) @ V.T
    return M


def nonlinear_targets(seed: int) -> dict[str, Target]:
    """`tanh teacher` is B tanh(H tanh(2 A x)), which an adapter of rank 2 can be; `sine` is B sin(2 A x) and `absolute`
    B |A x|, with A and B of rank 2; `32 GELUs` is W_2 gelu(2 W_1 x), whose outputs fill the space.
    """
    normal = _normal(seed)
    A, B = (torch.linalg.qr(normal(SIZE, RANK))[0] for _ in range(2))
    H = normal(RANK, RANK)
    first, second = normal(HIDDEN, SIZE) / SIZE**0.5, normal(SIZE, HIDDEN) / HIDDEN**0.5
    return {
        "tanh teacher": teacher(A, B, H, 2.0),
        "sine": lambda x: torch.sin(2 * x @ A) @ B.T,
        "absolute": lambda x: (x @ A).abs() @ B.T,
        "32 GELUs": lambda x: functional.gelu(2 * x @ first.T) @ second.T,
    }


def teacher(A: Tensor, B: Tensor, H: Tensor, gain: float) -> Target:
    """B tanh(H tanh(gain A^T x)) for A, B (d, r): the fixed part of the ANL, linear for a small gain."""
    return lambda x: torch.tanh(torch.tanh(gain * x @ A) @ H.T) @ B.T


def _normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
