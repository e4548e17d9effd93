"""Tables and the figure of the nonlinearity on frozen features, on runs with known scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from make.frozen_features import (
    by_setting,
    differences,
    edges,
)

ROOT = Path(__file__).parents[2]

FEATURES = ("digits, pixels", "movie-rating, words")
BETTER = ("better", "better, within 1 point")
NOISE = (0.0, 0.001, -0.001, 0.002, -0.002)


def run(features: str, method: str, rank: int, seed: int, score: float, rate: float = 0.01) -> dict[str, Any]:
    found = {"features": features, "method": method, "rank": rank, "rate": rate, "decay": 0.1, "seed": seed}
    metrics = ("pearson", "spearman") if "rating" in features else ("accuracy",)
    found |= {"plateau": seed != 3, "chance": 0.1, "test": {**dict.fromkeys(metrics, score), "loss": 1.0}}
    return found | ({"merged": {**dict.fromkeys(metrics, score - 0.2), "loss": 2.0}} if "aurora" in method else {})


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    """AuroRA with tanh wins 5 points over the head, with ReLU 0.2; LoRA wins nothing, the bottleneck swings."""
    gains = {"head": 0.0, "aurora-skip": 0.05, "aurora": 0.05, "aurora-relu": 0.002, "lora": 0.0, "mlp": 0.0}
    found = []
    for features in FEATURES:
        for method, gain in gains.items():
            for rank in (0,) if method == "head" else (2, 8):
                for seed, noise in enumerate(NOISE):
                    swing = noise * (20 if method == "mlp" else 0.5 if method in ("aurora", "aurora-skip") else 0)
                    found.append(run(features, method, rank, seed, 0.5 + noise + gain + swing))
    tuning = [
        {**{name: value for name, value in one.items() if name != "test"}, "seed": 100, "rate": rate, "decay": decay}
        for one in found
        if one["seed"] == 0
        for rate, decay in ((0.001, 0), (0.01, 1), (0.1, 0.1))
    ]
    return tuning + found


def test_differences_are_paired_by_seed(runs: list[dict[str, Any]]) -> None:
    answers = differences(runs)
    assert len(answers) == 3 * 3 * 2
    found = answers[("digits, pixels", "accuracy"), "aurora", 2]
    assert [one.difference for one in found.values()] == pytest.approx([0.05, 0.05, 0.05, -0.15])
    head = found["minus the head alone"]
    deviation = 0.5 * 0.0015811  # of the pairs: the noise that both have is not in it
    assert 0.05 - head.interval[0] == pytest.approx(2.7764 * deviation / 5**0.5, rel=1e-3)
    assert [one.verdict for one in found.values()] == ["better", "better", "better", "worse"]
    little = answers[("digits, pixels", "accuracy"), "aurora-relu", 8]
    assert [one.verdict for one in little.values()] == [
        "better, within 1 point",
        "better, within 1 point",
        "no significant difference",
        "worse",
    ]
    assert little["minus LoRA"].interval[0] == pytest.approx(0.002)  # above 0, and less than a point


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
