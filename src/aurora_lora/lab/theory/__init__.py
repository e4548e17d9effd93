"""The paper's propositions and its Appendix C, checked by computation: what holds, how tightly, and what does not.

Pure functions in float64 on the package's own ops. `aurora theory` runs them all.
"""

from .checks import run, total_steps

__all__ = ["run", "total_steps"]
