"""Accelerate's loaders, of which a training loop may be in the middle while we read from them or from others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_PLACE = ("end_of_dataloader", "remainder", "iteration", "_stop_iteration")
"""What such a loader notes of its present iteration."""


def iterations_of_now() -> Callable[[], None]:
    """What makes the loaders that are being iterated now those that Accelerate takes for it, each as far as it is.

    A prepared loader enters itself in Accelerate's `GradientState` when it begins, and leaves it at its end alone: one
    that is left early would stay the active one, by whose end a training loop with `gradient_accumulation_steps` steps.
    Without Accelerate there is nothing to do, and it is not imported.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return _nothing
    state: Any = accelerate.GradientState()
    loaders = state.dataloader_references
    places = [(loader, _place(loader)) for loader in loaders if loader is not None]

    def put_back() -> None:
        state.dataloader_references = loaders
        for loader, place in places:
            vars(loader).update(place)

    return put_back


def _nothing() -> None:
    pass


def _place(loader: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(loader).items() if name in _PLACE}
