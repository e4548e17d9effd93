"""Times that may be compared: everything takes turns in one run, and is compared round by round."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from scipy.stats import bootstrap

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
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(actions: Mapping[str, Action], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each action in each round; in a round every action has one turn, in an order drawn anew.

    All actions are given the same number in a round.
    """

    def repeat(action: Action, number: int, times: int) -> None:
        for _ in range(times):
            action(number)

    durations = [clock(partial(action, i)) for i in range(WARM_UP) for action in actions.values()]
    # the same for all, by the quickest turn after the warm-up
    repeats = max(1, min(1000, round(LEAST_SAMPLE / max(min(durations[-len(actions) :]), 1e-6))))
    order, chance = list(actions), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    gc.collect()
    gc.freeze()  # what is there now need not be looked through after each round
    gc.disable()  # a collection would fall on whoever has its turn
    try:
        for number in range(rounds):
            gc.collect()
            chance.shuffle(order)
            for name in order:
                seconds[name].append(clock(partial(repeat, actions[name], number, repeats)) / repeats)
    finally:
        gc.unfreeze()
        gc.enable()
    return seconds


def estimate(values: Sequence[float]) -> dict[str, float]:
    """The `median` of one value a round, and `low` and `high`, its 95% bootstrap interval (percentile method)."""
    rng = np.random.default_rng(0)
    ends = bootstrap((np.asarray(values),), np.median, method="percentile", rng=rng).confidence_interval
    return {"median": float(np.median(values)), "low": float(ends.low), "high": float(ends.high)}


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """The estimate of a time divided by the reference's time in the same round."""
    return estimate([a / b for a, b in zip(seconds, reference, strict=True)])


def paired_difference(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """The estimate of a time less the reference's time in the same round."""
    return estimate([a - b for a, b in zip(seconds, reference, strict=True)])
