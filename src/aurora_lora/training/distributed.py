"""One process writes and decides, all follow: the same code under `accelerate launch` and alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

T = TypeVar("T")


def state() -> PartialState:
    """This process among its peers; joins them (gloo where there is no accelerator) on the first call."""
    return PartialState(cpu=not torch.accelerator.is_available()) if not PartialState._shared_state else PartialState()


def is_main() -> bool:
    """Whether this process prints and writes."""
    return bool(state().is_main_process)


def on_main(work: Callable[[], T]) -> T:
    """Do the work in the main process and give its result, or its error, to all."""
    if state().num_processes == 1:
        return work()
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome, from_process=0)
    if outcome[1] is not None:
        raise cast(Exception, outcome[1])
    return cast(T, outcome[0])
