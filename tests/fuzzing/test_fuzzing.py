"""Hostile input at a small size: `make fuzz` draws more."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzzing import folders, runner, texts
from fuzzing.hostile import same
from fuzzing.world import World

NAMES = (
    *("configurations", "recipes and overrides", "studies", "data files", "chat data files", "data folders"),
    "command lines",
    *("adapter folders", "run folders", "shown and pushed", "answered files", "model folders", "checkpoints"),
)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, runner.Layer]]:
    before = dict(os.environ)
    world = World(tmp_path_factory.mktemp("world").resolve())
    yield {**texts.layers(world), **folders.layers(world)}
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*NAMES[:7], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[7:])])
def test_no_traceback_and_nothing_wrong_is_accepted(layers: dict[str, runner.Layer], name: str) -> None:
    tally = runner.run(layers[name], layers[name].small)
    assert not tally.failures, "\n".join(tally.failures.values())
    assert tally.counts["refused"] or name == "checkpoints"  # what is drawn is hostile; of checkpoints is another


def test_these_are_all_layers(layers: dict[str, runner.Layer]) -> None:
    assert tuple(layers) == NAMES
    assert sum(layer.full for layer in layers.values()) >= 20_000


def test_what_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(drawn: int) -> runner.Verdict:
        if drawn % 4 == 0:
            raise runner.SilentError("wrong")
        if drawn % 4 == 1:
            raise KeyError(drawn)
        return "refused" if drawn % 4 == 2 else "accepted"

    def layer(check: Any) -> runner.Layer:
        return runner.Layer("", "", st.integers(0, 10**6), check, 1, 1)

    tally = runner.run(layer(check), 200)
    inputs, *counts = tally.counts.values()
    assert inputs == 200 == sum(counts)
    assert min(counts) > 0
    assert len(tally.failures) == 2  # one of each place
    monkeypatch.setattr(runner, "SECONDS", 1)
    (told,) = runner.run(layer(lambda _: time.sleep(5)), 1).failures.values()
    assert told.startswith("TimeoutError: more than 1 s")


def test_what_counts_as_kept() -> None:
    assert same([1, {"a": 2.0}], [1.0, {"a": 2}])
    assert same(["a", "b"], {"b", "a"})
    for given, kept in ((True, 1), (1, True), ("1", 1), (None, 0), ([1], [1, 2]), ({"a": 1}, {}), (1.5, 1)):
        assert not same(given, kept)
