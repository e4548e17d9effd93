"""Times that may be compared: everything takes turns in one run, and is compared round by round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

Action = Callable[[int], object]
"""Runs once; the argument is the number of the round, which chooses the batch."""

Clock = Callable[[Callable[[], object]], float]
"""Runs a function and gives the seconds that it took."""

LEAST_SAMPLE = 0.02
"""Seconds that one sample should last at least: shorter actions are repeated within it."""
WARM_UP = 2
"""Turns of each action that are not measured."""


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process, all threads together: time that another process takes away is not in it."""
    start = time.process_time()
    function()
    return time.process_time() - start


def cuda_seconds(function: Callable[[], object]) -> float:
    """Time on the GPU between two events around the function."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock_of(device: torch.device) -> Clock:
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def interleave(
    actions: Mapping[str, Action],
    rounds: int,
    clock: Clock,
    *,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each action in each round; in a round every action has one turn, in an order drawn anew.

    Args:
        actions: by name. All are given the same number in a round.
        rounds: how many.
        clock: measures a sample.
        after_round: called between rounds, for a progress bar.

    Returns:
        For each action, seconds per turn, one for each round.
    """
    durations = [clock(partial(action, i)) for i in range(WARM_UP) for action in actions.values()]
    # the same for all, by the quickest turn after the warm-up
    repeats = max(1, min(1000, round(LEAST_SAMPLE / max(min(durations[-len(actions) :]), 1e-6))))
    order, chance = list(actions), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    was_enabled, freezes = gc.isenabled(), not gc.get_freeze_count()
    gc.collect()
    if freezes:
        gc.freeze()  # what is there now need not be looked through after each round
    gc.disable()  # a collection would fall on whoever has its turn
    try:
        for number in range(rounds):
            gc.collect()
            chance.shuffle(order)
            for name in order:
                seconds[name].append(clock(partial(_repeat, actions[name], number, repeats)) / repeats)
            after_round()
    finally:
        if freezes:
            gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
    return seconds


def _repeat(action: Action, number: int, times: int) -> None:
    for _ in range(times):
        action(number)


@dataclass(frozen=True)
class MedianInterval:
    """A median with the ends of its 95% confidence interval."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> MedianInterval:
    """The median of one value a round, with a bootstrap interval (percentile method)."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 rounds, got {len(values)}")
    found = bootstrap(
        (np.asarray(values),), np.median, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return MedianInterval(float(np.median(values)), float(found.low), float(found.high))


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> MedianInterval:
    """The median over the rounds of a time divided by the reference's time in the same round."""
    return estimate([a / b for a, b in zip(seconds, reference, strict=True)])


def paired_difference(seconds: Sequence[float], reference: Sequence[float]) -> MedianInterval:
    """The median over the rounds of a time less the reference's time in the same round."""
    return estimate([a - b for a, b in zip(seconds, reference, strict=True)])
