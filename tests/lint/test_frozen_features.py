"""Tables and the figure of the nonlinearity on frozen features, on runs with known scores."""

import json
from pathlib import Path

from make.frozen_features import (
    by_setting,
    differences,
    edges,
)

ROOT = Path(__file__).parents[2]

BETTER = ("better", "better, within 1 point")


def test_what_is_committed_is_whole_and_in_the_page() -> None:
    lines = (ROOT / "results" / "frozen-features" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    found = by_setting(runs)
    assert len(found) == len({run["features"] for run in runs}) * (1 + 3 * 5)
    assert all([run["seed"] for run in group] == [0, 1, 2, 3, 4] for group in found.values())
    assert "No chosen value" in edges(runs)
    said = differences(runs)
    for subject, rank in (("cifar10-10k, pixels", "accuracy"), 32), (("movie-rating, sentences", "pearson"), 8):
        found = said[subject, "aurora-skip", rank]  # what the answer says
        assert found["minus the head alone"].verdict == found["minus LoRA"].verdict == "better"
    order = said[("movie-rating, sentences", "spearman"), "aurora-skip", 8]["minus the head alone"]
    assert order.verdict == "equivalent within 1 point"
    assert all(one["merged, minus the head alone"].verdict not in BETTER for one in said.values())
    sentiment = [one for ((features, _), *_), one in said.items() if "sentiment" in features]
    assert all(one["minus the head alone"].verdict not in BETTER for one in sentiment)
