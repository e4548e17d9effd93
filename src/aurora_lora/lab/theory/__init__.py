"""The paper's propositions and its Appendix C, checked by computation: what holds, how tightly, and what does not.

Pure functions in float64 on the package's own ops. `aurora theory` runs them all.
"""

from .approximation import (
    Adapter,
    best_linear,
    isotropic_inputs,
    linear_floor,
    output_floor,
    supremum,
    update,
)
from .bounds import GRADIENTS, Layer, gradient_bounds, gradient_norms
from .checks import Record, run, total_steps

__all__ = [
    "GRADIENTS",
    "Adapter",
    "Layer",
    "Record",
    "best_linear",
    "gradient_bounds",
    "gradient_norms",
    "isotropic_inputs",
    "linear_floor",
    "output_floor",
    "run",
    "supremum",
    "total_steps",
    "update",
]
