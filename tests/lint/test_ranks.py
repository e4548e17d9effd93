"""The tables of docs/ranks.md."""

from pathlib import Path
from typing import Any

from make.ranks import USED, scores_table

ROOT = Path(__file__).parents[2]


def line(way: str, seed: int, rate: float, score: float) -> dict[str, Any]:
    return {"way": way, "seed": seed, "learning_rate": rate, "metric": "captured", "validation": score}


def test_ways_are_compared_at_their_best_rates_by_seed() -> None:
    runs = [line("S by weight", 0, 0.1, 0.72), line("S by weight", 1, 0.1, 0.70), line("S by weight", 0, 0.2, 0.6)]
    runs += [line(USED, 0, 0.1, 0.60), line(USED, 1, 0.1, 0.60), line(USED, 0, 0.2, 0.70), line(USED, 1, 0.2, 0.70)]
    first, second = scores_table(runs).splitlines()[2:]
    assert first == f"| {USED} | 2 | 70.0 |  |  |"
    # paired: +2 and 0, mean 1; Student's t of one degree of freedom is 12.71, the standard error 1
    assert second == "| S by weight | 2 | 71.0 | +1.0 | -11.7 to +13.7 |"
