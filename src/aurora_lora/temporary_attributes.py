"""Attributes that are others for a while, and then as before, also after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def kept(things: Iterable[Any], *names: str) -> Iterator[None]:
    """Whatever the block does to these attributes of each thing, they are as before at its end; one that was its
    class's is that again."""
    earlier = [(vars(thing), {name: vars(thing)[name] for name in names if name in vars(thing)}) for thing in things]
    try:
        yield
    finally:
        for now, before in earlier:
            for name in now.keys() & set(names) - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def temporary_attributes(things: Iterable[Any], **values: Any) -> Iterator[None]:
    """Within the block, each thing has these values in its attributes."""
    things = list(things)
    with kept(things, *values):
        for thing in things:
            for name, value in values.items():
                setattr(thing, name, value)
        yield


@contextmanager
def called_as(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the block, each module computes by the function that is given for it."""
    forwards = list(forwards)
    with kept((module for module, _ in forwards), "forward"):
        for module, forward in forwards:
            module.forward = forward
        yield
