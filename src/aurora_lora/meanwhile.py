"""Attributes that are others for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def meanwhile(things: Iterable[Any], **values: Any) -> Iterator[None]:
    """Within the block, each thing has these values in its attributes; then those of before, also after an error."""
    things = list(things)
    with kept(things, *values):
        for thing in things:
            for name, value in values.items():
                setattr(thing, name, value)
        yield


@contextmanager
def kept(things: Iterable[Any], *names: str) -> Iterator[None]:
    """Whatever the block does to these attributes of each thing, at its end they are as before, also after an error."""
    earlier = [(thing, name, getattr(thing, name)) for thing in things for name in names]
    try:
        yield
    finally:
        for thing, name, value in earlier:
            setattr(thing, name, value)
