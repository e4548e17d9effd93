"""The adaptive nonlinear layer (ANL), Eqs. 5 to 7, as it is printed: what every fast implementation is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..values import is_grid, is_int, one_of, require
from .spline import bspline_basis

LEAKY_RELU_SLOPE = 0.01

Kept = tuple[Tensor | None, ...]
"""What an implementation keeps from its forward for its backward."""
Derivatives = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""u = sigma(z) again, and the derivatives dz, dH and dW_s."""

Activation = Literal["tanh", "leaky_relu", "sigmoid", "relu"]
Spline = Literal["channelwise", "summed"]
SPLINES: tuple[Spline, ...] = get_args(Spline)

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "leaky_relu": lambda z: functional.leaky_relu(z, LEAKY_RELU_SLOPE),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


@dataclass(frozen=True)
class ANL:
    """What sigma is made of. The weights are passed beside it; see `adaptive_nonlinear`.

    Args:
        fixed_activation: this and the others as in `AuroraConfig`.
        spline: how Eq. 7 is read, or None.
        spline_grid_size: grid intervals.
        spline_order: polynomial degree.
        spline_range: the interval of the grid.
        skip: whether z is a term of its own, as by default in `AuroraConfig`, or not, as in the paper: to be given.

    Raises:
        ValueError: for a value that is not allowed; the message names the field, the value and what is allowed.
    """

    fixed_activation: Activation | None = "tanh"
    spline: Spline | None = "channelwise"
    spline_grid_size: int = 5
    spline_order: int = 3
    spline_range: tuple[float, float] = (-1.0, 1.0)
    skip: bool = field(kw_only=True)
    n_basis: int = field(init=False, repr=False, compare=False)
    """K, the number of B-spline basis functions."""
    is_identity: bool = field(init=False, repr=False, compare=False)
    """Whether sigma(z) = z, so that the adapter is plain LoRA."""

    def __post_init__(self) -> None:
        one_of("fixed_activation", self.fixed_activation, (*ACTIVATIONS, None))
        one_of("spline", self.spline, (*SPLINES, None))
        one_of("skip", self.skip, (True, False))
        for name, least, most in (("spline_grid_size", 1, 1024), ("spline_order", 0, 16)):
            require(
                is_int(given := getattr(self, name), least, most), name, given, f"a whole number of {least} to {most}"
            )
        allowed = "two finite numbers (low, high) with low < high, whose grid float32 can tell apart"
        require(is_grid(self.spline_range, self.spline_grid_size), "spline_range", self.spline_range, allowed)
        self.derive()
        if self.is_identity and not self.skip:
            raise ValueError(
                "fixed_activation=None with spline=None leaves sigma = 0: keep one of the two, "
                "or set skip=True for plain LoRA."
            )
        low, high = self.spline_range
        object.__setattr__(self, "spline_range", (float(low), float(high)))  # a list has no hash

    def derive(self) -> None:
        """Set what follows from the other fields."""
        object.__setattr__(self, "n_basis", self.spline_grid_size + self.spline_order)
        object.__setattr__(self, "is_identity", self.fixed_activation is None and self.spline is None)

    def weight_sizes(self, r: int) -> tuple[int, int]:
        """The numbers of entries of H and of W_s; 0 for a part that sigma lacks."""
        return r * r if self.fixed_activation else 0, r * self.n_basis if self.spline else 0


IDENTITY = ANL(None, None, skip=True)


def adaptive_nonlinear(z: Tensor, H: Tensor | None, spline_weight: Tensor | None, anl: ANL) -> Tensor:
    """sigma(z) = [z +] F(z) + L(z), with F(z) = act(H act(z)) and L(z) = W_s s(z) (Eqs. 5 to 7).

    "channelwise": L(z)_i = sum_k W_s[i, k] B_k(z_i).  "summed": L(z) = W_s sum_i B(z_i).

    Args:
        z: (..., r), a batch of vectors in the rank space. The ANL mixes the last dimension.
        H: (r, r), the mixer of Eq. 6; None without the fixed part.
        spline_weight: W_s, (r, K); None without the learnable part.
        anl: which parts there are.

    Returns:
        (..., r) in z's dtype. bfloat16 and float16 are computed in float32, also under autocast: r is tiny, and the
        spline of a rounded argument would be the larger error.
    """
    if anl.is_identity:
        return z
    device = "cpu" if z.is_meta else z.device.type  # there is no autocast for meta tensors
    with torch.autocast(device, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        x = z.to(dtype)
        parts = [x] if anl.skip else []
        if anl.fixed_activation is not None:
            assert H is not None
            act = ACTIVATIONS[anl.fixed_activation]
            parts.append(act(_times(act(x), H.to(dtype))))
        if anl.spline is not None:
            assert spline_weight is not None
            W = spline_weight.to(dtype)
            basis = bspline_basis(x, anl.spline_grid_size, anl.spline_order, anl.spline_range)  # (..., r, K)
            parts.append((basis * W).sum(-1) if anl.spline == "channelwise" else _times(basis.sum(-2), W))
        return sum(parts[1:], parts[0]).to(z.dtype)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) -> x weight^T (..., r).

    To a compiler a matrix product is a call of its own, which splits sigma into pieces; written as products and their
    sums, it is fused with what is around it. Large ones are left to the libraries.
    """
    if torch.compiler.is_compiling() and weight.shape[-1] <= 16:
        return (x.unsqueeze(-2) * weight).sum(-1)
    return x @ weight.T
