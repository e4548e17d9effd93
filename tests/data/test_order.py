"""The order of a seed: what decides which examples are held out must never change."""

from aurora_lora.data.order import place, seeded_order


def test_a_place_is_pinned() -> None:
    """SHA-256 of `3\\na film`, as sha256sum prints it."""
    pinned = "3a146da7cb2ec8acbf5ba26a06487da678951de63c88910a23604517e0a2bff6"
    assert place("a film", 3).hex() == place(b"a film", 3).hex() == pinned


def test_rows_are_in_the_order_of_their_numbers_places() -> None:
    assert seeded_order(8, 0) == [1, 4, 6, 7, 0, 3, 5, 2]
    assert seeded_order(8, 1) != seeded_order(8, 0)
    assert sorted(seeded_order(50, 7)) == list(range(50))
