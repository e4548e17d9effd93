"""Maps on frozen features: what each can express, equal numbers of weights, and runs that are not run twice."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks import frozen_features


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(frozen_features, "BATCH", 64)
    return frozen_features


def trained(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name)


def at_random(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.mark.parametrize(("d", "rank"), [(64, 2), (64, 32), (384, 8), (768, 32)])
def test_numbers_of_weights_are_as_equal_as_ranks_allow(benchmark: ModuleType, d: int, rank: int) -> None:
    wanted = trained(benchmark.probe("aurora", rank, d, 3))
    for method in ("lora", "mlp"):
        assert abs(trained(benchmark.probe(method, rank, d, 3)) - wanted) <= d + 1
    assert trained(benchmark.probe("aurora-relu", rank, d, 3)) == wanted
    assert trained(benchmark.probe("head", 0, d, 3)) == 0


def test_a_linear_map_before_the_head_adds_nothing_to_it(benchmark: ModuleType) -> None:
    one, other, zero = torch.randn(5, 16), torch.randn(5, 16), torch.zeros(5, 16)

    def bend(method: str) -> float:
        model = at_random(benchmark.probe(method, 4, 16, 3))
        with torch.no_grad():
            return (model(one + other) + model(zero) - model(one) - model(other)).abs().max().item()

    assert max(bend("head"), bend("lora")) < 1e-4
    assert min(bend("aurora"), bend("aurora-relu"), bend("mlp")) > 0.01


def test_runs_are_kept_resumed_and_tidied(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 400, 8, generator=draw)
    y = (x[..., 0].abs() > 0.67).long()  # no linear head sees it
    splits = {name: benchmark.Split(*both) for name, *both in zip(("train", "validation", "test"), x, y, strict=True)}
    monkeypatch.setattr(benchmark, "load", lambda *_: splits)
    for name, value in (("RATES", (3e-3, 3e-2)), ("DECAYS", (0.0, 1.0)), ("STEPS", 300)):
        monkeypatch.setattr(benchmark, name, value)
    first, features = benchmark.Benchmark(tmp_path, tmp_path), "digits, pixels"
    scores = {}
    for method in ("head", "aurora-relu"):
        chosen = first.tuned(features, method, 4)
        scores[method] = first.run(features, method, 4, *chosen, 0)["test"]["accuracy"]
    assert scores["head"] < 0.6
    assert scores["aurora-relu"] > 0.8
    lines = first.path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 2 * (2 + 1 + 1)
    first.path.write_text("\n".join([*lines, '{"features": "cut']))

    again = benchmark.Benchmark(tmp_path, tmp_path)
    monkeypatch.setattr(benchmark, "fit", None)  # nothing is trained again
    for method in scores:
        again.run(features, method, 4, *again.tuned(features, method, 4), 0)
    assert again.path.read_text().splitlines() == lines
    again.asked = {key for key in again.asked if key[1] == "head"}
    again.tidy()
    assert [json.loads(line)["method"] for line in again.path.read_text().splitlines()] == ["head"] * 4
