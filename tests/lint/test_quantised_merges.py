"""The tables of rounding in docs/quantised.md, on known records."""

from typing import Any

from make.quantised_merges import rounding_tables

WAYS = {
    "nearest values": {"its texts": 0.998, "other texts": 1.002, "seconds": 1.6},
    "one sweep (used)": {"its texts": 0.182, "other texts": 0.285, "seconds": 7.2},
}
ORDER = {"inputs of the unmerged model (used)": {"kl": 0.0421, "same_top": 0.871}}


def layer(bits: int, ours: float) -> dict[str, Any]:
    """Our error, and llmcompressor's of 2 on the calibration inputs and of 4 on others."""
    same = {"calibration": 2.0, "test": 4.0}
    row = {"nearest": {"calibration": 10.0, "test": 8.0}, "llmcompressor": same, "ours, its settings": same}
    return {"layer": "q", "bits": bits, **row, "ours": {"calibration": ours, "test": 4.0 * ours}}


def test_each_error_is_a_share_of_the_references_own() -> None:
    rows = [layer(4, 1.0), layer(4, 4.0), layer(8, 1.0)]
    lines = rounding_tables({"ways": WAYS, "order": ORDER, "llmcompressor": rows}).splitlines()
    assert lines[2:4] == [
        "| nearest values | 99.8 | 100.2 | 2 |",
        "| **one sweep (used)** | 18.2 | 28.5 | 7 |",
    ]
    assert "| the unmerged model (used) | 0.042 | 87.1 |" in lines
    assert lines[-6:] == [
        "| int4, blocks of 64 | 2 | nearest | 5.00 (5.00 to 5.00) | 2.00 (2.00 to 2.00) |",
        "| int4, blocks of 64 | 2 | ours, its settings | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |",
        "| int4, blocks of 64 | 2 | ours | 1.00 (0.50 to 2.00) | 2.00 (1.00 to 4.00) |",
        "| int8, by row | 1 | nearest | 5.00 (5.00 to 5.00) | 2.00 (2.00 to 2.00) |",
        "| int8, by row | 1 | ours, its settings | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |",
        "| int8, by row | 1 | ours | 0.50 (0.50 to 0.50) | 1.00 (1.00 to 1.00) |",
    ]
