"""Pure tensor functions of the method: no parameters, no PEFT."""

from .anl import ANL, adaptive_nonlinear, nonlinear_columns
from .spline import bspline_basis, bspline_basis_derivative, identity_weights

__all__ = [
    "ANL",
    "adaptive_nonlinear",
    "bspline_basis",
    "bspline_basis_derivative",
    "identity_weights",
    "nonlinear_columns",
]
