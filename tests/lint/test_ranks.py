"""The tables of docs/ranks.md."""

import json
from pathlib import Path
from typing import Any

import pytest

from make.ranks import USED, cost_of_probe, ranks_shown, scores_table

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


def test_one_seed_has_no_interval() -> None:
    assert scores_table([line(USED, 0, 0.1, 0.6), line("other", 0, 0.1, 0.7)]).endswith(
        "| other | 1 | 70.0 | +10.0 |  |"
    )


RECORD = {
    "examples": 48,
    "batch": 8,
    "epoch": 3000,
    "rank": 32,
    "probe_s": [31.0, 30.0],
    "step_s": [2.1, 2.0],
    "share_of_epoch": 0.04,
    "peak_mb": {"steps": 900.0, "probe": 1100.0},
    "llama3_8b": {
        "examples": 48,
        "tokens": 256,
        "weight_bytes": 13 * 2**30,
        "sketch_bytes": 2**30,
        "operations": {"passes": 10**15, "sketches": 10**14},
    },
}


@pytest.mark.parametrize(("probe", "said"), [(1100.0, "200 MiB more than"), (850.0, "50 MiB less than")])
def test_cost(probe: float, said: str) -> None:
    text = cost_of_probe({**RECORD, "peak_mb": {"steps": 900.0, "probe": probe}})
    assert said in text
    assert "4.0% of an epoch of 3,000" in text
    assert "(13.0 GiB in bfloat16)" in text
    assert "take 1.0 GiB at once" in text
    assert "1.1 PFLOP: 11 s at 100 TFLOP/s" in text


def test_what_is_committed_is_in_the_page() -> None:
    page = (ROOT / "docs" / "ranks.md").read_text()
    lines = (ROOT / "results" / "rank-scores" / "runs.jsonl").read_text().splitlines()
    assert scores_table([json.loads(one) for one in lines]) in page
    assert cost_of_probe(json.loads((ROOT / "results" / "probe" / "cost.json").read_text())) in page
    assert ranks_shown(json.loads((ROOT / "results" / "rank" / "ranks.json").read_text())) in page
