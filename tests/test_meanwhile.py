"""Attributes that are others for a while."""

from types import SimpleNamespace

import pytest

from aurora_lora.meanwhile import meanwhile


def test_values_of_before_come_back_also_after_an_error():
    things = [SimpleNamespace(cache=True, name="a"), SimpleNamespace(cache=None, name="b")]
    seen = []

    def fail():
        seen.extend((thing.cache, thing.name) for thing in things)
        raise KeyError

    with pytest.raises(KeyError), meanwhile(things, cache=False, name="c"):
        fail()
    assert seen == [(False, "c")] * 2
    assert [(thing.cache, thing.name) for thing in things] == [(True, "a"), (None, "b")]
