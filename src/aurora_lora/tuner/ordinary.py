"""Weights that a model keeps are ordinary tensors, also where they are made inside `torch.inference_mode()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made meanwhile are ordinary ones, without gradients: training and `load_state_dict` take them later."""
    with torch.inference_mode(False), torch.no_grad():
        yield
