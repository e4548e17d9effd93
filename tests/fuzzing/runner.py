"""Draws the inputs of a layer, checks each, and counts."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Verdict = Literal["refused", "accepted"]
SECONDS = 60
"""An input that takes longer counts as a failure."""


class SilentError(AssertionError):
    """An input was accepted, and what came out of it is wrong."""


@dataclass(frozen=True)
class Layer:
    """One kind of input.

    Args:
        name: in the record.
        what: what is drawn, in a line.
        promise: what must be true of an input that is accepted.
        inputs: strategy of the inputs.
        check: gives the verdict on one; raises a `SilentError`, or whatever the code raised.
        full: how many inputs `make fuzz` draws.
        small: how many `make test` draws.
    """

    name: str
    what: str
    promise: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], Verdict]
    full: int
    small: int


@dataclass
class Tally:
    """What came of a layer's inputs."""

    what: str
    promise: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    tracebacks: int = 0
    silent: int = 0
    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, error: BaseException, drawn: Any) -> None:
        """Count a failure, and keep the first of each place in the code."""
        is_silent = isinstance(error, SilentError)
        self.silent += is_silent
        self.tracebacks += not is_silent
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
        told = f"{type(error).__name__}: {error}"[:300]
        if len(self.failures) < 20 and not any(one["place"] == place for one in self.failures):
            trace = "".join(traceback.format_tb(error.__traceback__)[-6:])
            self.failures.append({"place": place, "error": told, "input": repr(drawn)[:600], "trace": trace})


def total(tallies: Sequence[Tally]) -> Tally:
    """The tallies of a layer's pieces as one."""
    whole = Tally(tallies[0].what, tallies[0].promise)
    for name in ("inputs", "refused", "accepted", "tracebacks", "silent", "seconds"):
        setattr(whole, name, round(sum(getattr(tally, name) for tally in tallies), 1))
    for one in (one for tally in tallies for one in tally.failures):
        if not any(one["place"] == other["place"] for other in whole.failures):
            whole.failures.append(one)
    return whole


def run(layer: Layer, count: int, number: int = 0) -> Tally:
    """Check `count` inputs; `number` is the seed of the draw."""
    tally, start = Tally(layer.what, layer.promise), time.monotonic()

    def one(drawn: Any) -> None:
        tally.inputs += 1
        try:
            with _time_limit():
                verdict = layer.check(drawn)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            tally.fail(error, drawn)
        else:
            tally.refused += verdict == "refused"
            tally.accepted += verdict == "accepted"

    while tally.inputs < count:  # Hypothesis may end a draw early, when it has seen all there is near a start
        before = tally.inputs
        chosen = settings(
            max_examples=count - tally.inputs,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(chosen(given(layer.inputs)(one)))()
        number += 1000
        if tally.inputs == before:
            break
    tally.seconds = round(time.monotonic() - start, 1)
    return tally


@contextmanager
def _time_limit() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
