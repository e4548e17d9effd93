"""What the adapters of Proposition 2.1's check have to imitate: a linear map, and nonlinear functions of x (n, d)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Target = Callable[[Tensor], Tensor]

SIZE, RANK = 6, 2
SINGULAR_VALUES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2)
HIDDEN = 32


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


def gain_target(seed: int, gain: float) -> Target:
    """B tanh(tanh(gain A x)): the further from linear, the larger the gain."""
    normal = _normal(seed)
    A, B = (torch.linalg.qr(normal(SIZE, RANK))[0] for _ in range(2))
    return teacher(A, B, torch.eye(RANK, dtype=torch.float64), gain)


def _normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
