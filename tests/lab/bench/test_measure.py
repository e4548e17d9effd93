"""The ratios of the comparison, from times that are made up."""

import pytest

from aurora_lora.lab.bench.measure import Key, _ratios
from aurora_lora.lab.bench.variants import REFERENCE

SECONDS: dict[Key, list[float]] = {
    (REFERENCE, False): [2.0, 4.0, 8.0],
    (REFERENCE, True): [1.0, 2.0, 4.0],
    ("aurora-dynamic", False): [4.0, 8.0, 16.0],
    ("aurora-dynamic", True): [3.0, 6.0, 12.0],
}


def test_a_ratio_is_how_much_longer_a_variant_takes() -> None:
    key = ("aurora-dynamic", False)
    found = _ratios(key, SECONDS[key], SECONDS, REFERENCE)
    assert found.keys() == {"seconds", "ratio"}
    assert found["seconds"] == 8.0
    assert found["ratio"]["median"] == pytest.approx(2.0)


def test_a_compiled_variant_is_beside_the_compiled_reference_and_both_eager_ones() -> None:
    key = ("aurora-dynamic", True)
    found = _ratios(key, SECONDS[key], SECONDS, REFERENCE)
    assert found["ratio"]["median"] == pytest.approx(3.0)
    assert found["ratio_to_eager"]["median"] == pytest.approx(1.5)
    assert found["ratio_to_itself_eager"]["median"] == pytest.approx(0.75)
    without = {other: values for other, values in SECONDS.items() if other != ("aurora-dynamic", False)}
    assert "ratio_to_itself_eager" not in _ratios(key, SECONDS[key], without, REFERENCE)
