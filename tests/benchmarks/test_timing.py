"""Interleaving and its statistics, with a clock that is no clock."""

import gc
from collections import Counter
from functools import partial

import numpy as np
import pytest

from benchmarks.timing import estimate, interleave, paired_difference, paired_ratio


def test_every_action_has_a_turn_in_every_round_on_the_same_batch() -> None:
    seen: list[tuple[str, int]] = []
    actions = {name: partial(lambda name, number: seen.append((name, number)), name) for name in "abc"}
    seconds = interleave(actions, 20, lambda f: (f(), 1.0)[1])
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 20)
    measured = seen[6:]  # after two turns of warm-up
    orders = Counter()
    for number in range(20):
        turns = measured[3 * number : 3 * number + 3]
        assert {name for name, _ in turns} == set("abc")
        assert {batch for _, batch in turns} == {number}
        orders["".join(name for name, _ in turns)] += 1
    assert len(orders) > 3  # the order is drawn anew
    assert gc.isenabled()


def test_pairing_removes_what_both_share() -> None:
    """A drift and a disturbance that hit a whole round leave the ratio exact."""
    generator = np.random.default_rng(0)
    reference = list(np.linspace(1, 3, 30) * generator.uniform(0.5, 2, 30))
    found = paired_ratio([1.02 * value for value in reference], reference)
    assert (found["median"], found["low"], found["high"]) == pytest.approx((1.02, 1.02, 1.02))
    difference = paired_difference([value + 0.5 for value in reference], reference)
    assert difference["median"] == pytest.approx(0.5)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """30 pairs of log-normal noise around a true median of 1.05."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        found = estimate(list(1.05 * np.exp(generator.normal(0, 0.1, 30))))
        hits += found["low"] <= 1.05 <= found["high"]
    assert hits >= 51  # 57 expected; 51 or fewer has probability below 1%
