"""The paper's propositions and its Appendix C, checked by computation: what holds, how tightly, and what does not.

Pure functions in float64 on the package's own ops. `python -m theory` runs them all.
"""
