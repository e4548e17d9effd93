"""Draws the inputs of a layer, checks each, and counts."""

from __future__ import annotations

import signal
import traceback
from collections import Counter
from collections.abc import Callable
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
        what: what is drawn, in a line.
        promise: what must be true of an input that is accepted.
        inputs: strategy of the inputs.
        check: gives the verdict on one: "refused" where it ended in a documented error, "accepted" where what came out
            is right by an independent measure; raises a `SilentError`, or whatever the code raised.
        full: how many inputs `make fuzz` draws.
        small: how many `make test` draws.
    """

    what: str
    promise: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], Verdict]
    full: int
    small: int


@dataclass
class Tally:
    """What came of a layer's inputs: the first failure of each place in the code is kept."""

    counts: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(("inputs", "refused", "accepted", "tracebacks", "silent"), 0))
    )
    failures: dict[str, str] = field(default_factory=dict)


def run(layer: Layer, count: int, number: int = 0) -> Tally:
    """Check `count` inputs; `number` is the seed of the draw."""
    tally = Tally()

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    def one(drawn: Any) -> None:
        tally.counts["inputs"] += 1
        signal.alarm(SECONDS)
        try:
            verdict = layer.check(drawn)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            signal.alarm(0)
            tally.counts["silent" if isinstance(error, SilentError) else "tracebacks"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            trace = "".join(traceback.format_tb(error.__traceback__)[-6:])
            tally.failures.setdefault(
                f"{frames[-1].filename}:{frames[-1].lineno}",
                f"{type(error).__name__}: {str(error)[:300]}\n{repr(drawn)[:600]}\n{trace}",
            )
        else:
            signal.alarm(0)
            tally.counts[verdict] += 1

    before = signal.signal(signal.SIGALRM, late)
    while (left := count - tally.counts["inputs"]) > 0:  # Hypothesis may end a draw early
        chosen = settings(
            max_examples=left,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(chosen(given(layer.inputs)(one)))()
        number += 1000
    signal.signal(signal.SIGALRM, before)
    return tally
