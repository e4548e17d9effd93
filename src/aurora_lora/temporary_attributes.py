"""Attributes that are others for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def temporary_attributes(things: Iterable[Any], **values: Any) -> Iterator[None]:
    """Within the block, each thing has these values in its attributes; then those of before, also after an error."""
    things = list(things)
    with kept(things, *values):
        for thing in things:
            for name, value in values.items():
                setattr(thing, name, value)
        yield


@contextmanager
def called_as(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the block, each module computes by the function that is given for it.

    Then by what it did before, also after an error: its class's, or one of its own, as Accelerate's hooks leave it.
    """
    forwards = list(forwards)
    earlier = [(module, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.forward = forward
        yield
    finally:
        for module, own in earlier:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


@contextmanager
def kept(things: Iterable[Any], *names: str) -> Iterator[None]:
    """Whatever the block does to these attributes of each thing, at its end they are as before, also after an error."""
    earlier = [(thing, name, getattr(thing, name)) for thing in things for name in names]
    try:
        yield
    finally:
        for thing, name, value in earlier:
            setattr(thing, name, value)
