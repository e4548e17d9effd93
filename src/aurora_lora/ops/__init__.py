"""Pure tensor functions of the method: no parameters, no PEFT."""

from .anl import ANL, IDENTITY, adaptive_nonlinear
from .spline import bspline_basis, identity_weights
from .update import add_update, linear_with_update, sigma

__all__ = [
    "ANL",
    "IDENTITY",
    "adaptive_nonlinear",
    "add_update",
    "bspline_basis",
    "identity_weights",
    "linear_with_update",
    "sigma",
]
