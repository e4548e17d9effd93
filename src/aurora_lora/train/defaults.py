"""Defaults that functions and commands share: here, for help is printed without PyTorch."""

BATCH_SIZE = 16
"""Texts, or rows of a file, of one forward pass, unless another number is asked for."""
