"""Hostile input: drawn by Hypothesis, given to each layer, and held against what a reader may rely on.

    PYTHONPATH=tests:docs python -m fuzzing            # or: make fuzz

A `Layer` draws inputs and checks one at a time. It says "refused" where the input ended in a documented error, and
"accepted" where it did not and what came out is right by an independent measure; anything else is a failure.
"""
