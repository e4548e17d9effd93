"""Attributes that are others for a while."""

from types import SimpleNamespace

import pytest
from torch import nn

from aurora_lora.temporary_attributes import called_as, kept, temporary_attributes


def test_values_of_before_come_back_also_after_an_error():
    things = [SimpleNamespace(cache=True, name="a"), SimpleNamespace(cache=None, name="b")]
    seen = []

    def fail():
        seen.extend((thing.cache, thing.name) for thing in things)
        raise KeyError

    with pytest.raises(KeyError), temporary_attributes(things, cache=False, name="c"):
        fail()
    assert seen == [(False, "c")] * 2
    assert [(thing.cache, thing.name) for thing in things] == [(True, "a"), (None, "b")]


def test_what_a_block_does_to_attributes_is_undone_also_after_an_error():
    things = [SimpleNamespace(mode=True, name="a"), SimpleNamespace(mode=False, name="b")]

    def change():
        for thing in things:
            thing.mode, thing.name = None, "c"
        raise KeyError

    with pytest.raises(KeyError), kept(iter(things), "mode"):
        change()
    assert [(thing.mode, thing.name) for thing in things] == [(True, "c"), (False, "c")]


def test_modules_compute_as_before_also_after_an_error():
    """By what their class does, or by a function of their own, as Accelerate's hooks leave it."""
    plain, hooked = nn.Identity(), nn.Identity()
    hooked.forward = lambda x: x + 1
    seen = []

    def fail():
        seen.extend((plain(3), hooked(3)))
        raise KeyError

    with pytest.raises(KeyError), called_as([(plain, lambda x: -x), (hooked, lambda x: 2 * x)]):
        fail()
    assert [*seen, plain(3), hooked(3)] == [-3, 6, 3, 4]
    assert "forward" not in plain.__dict__
