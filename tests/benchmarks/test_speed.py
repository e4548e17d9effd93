"""The counts of the benchmark, and the guard on what the adapter path may cost in calls and bytes."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from aurora_lora.ops import sigma, update
from aurora_lora.ops.anl import ANL
from benchmarks import speed
from benchmarks.counts import Calls, calls_of, peak_bytes, saved_bytes
from benchmarks.speed import VARIANTS, Case, Inference, TrainingStep, build, linear_case
from benchmarks.speed_report import tables

CPU = torch.device("cpu")


# ---------------------------------------------------------------- the counters


def test_views_are_no_calls() -> None:
    x = torch.randn(4, 6)
    with Calls() as calls:
        (x.T.reshape(3, 8)[1:].unsqueeze(0) + 1).relu()
    assert calls.names == Counter({"clone": 1, "add": 1, "relu": 1})
    assert calls.names.total() == 3


def test_the_backward_pass_is_counted() -> None:
    a, b = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    assert calls_of(lambda: (a @ b).sum().backward())["mm"] == 3


def test_saved_bytes_count_a_storage_once() -> None:
    x = torch.randn(100, 10, requires_grad=True)
    weight = torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x @ weight + x @ weight) == 4000 + 400
    assert saved_bytes(lambda: x @ weight, [weight]) == 4000
    assert saved_bytes(lambda: x + 1) == 0


def test_peak_bytes() -> None:
    def two_then_one() -> None:
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a
        c = torch.empty(500)
        del b, c

    assert peak_bytes(two_then_one, CPU) == 4 * 3000
    kept = []
    assert peak_bytes(lambda: kept.append(torch.empty(250)), CPU) == 1000


# ---------------------------------------------------------------- the guard


@pytest.fixture(scope="module")
def layer() -> Case:
    """One Linear 768 -> 768 on 4,096 tokens, as inside a network: its input has a gradient."""
    return linear_case(4096, 768)


def step_counts(case: Case, variant: str) -> dict[str, Any]:
    step = TrainingStep(build(VARIANTS[variant], case, training=True), case)
    step()  # the table of the spline and the optimizer's state are made once
    return step.count()


def run_counts(case: Case, variant: str) -> dict[str, Any]:
    run = Inference(build(VARIANTS[variant], case, training=False), case)
    run()
    return run.count()


@pytest.mark.slow
def test_what_training_may_cost(layer: Case) -> None:
    frozen, lora = step_counts(layer, "frozen"), step_counts(layer, "lora-r8")
    assert frozen["calls"] == {"forward": 1, "both": 4}
    assert lora["calls"] == {"forward": 5, "both": 14}
    assert lora["saved_bytes"] == pytest.approx(15.1e6, rel=0.01)

    dynamic = step_counts(layer, "aurora-dynamic")
    assert dynamic["calls"]["both"] <= 34 + 1  # the skip adds z; its derivative costs no call
    assert dynamic["saved_bytes"] <= min(15.4e6, lora["saved_bytes"])
    assert dynamic["peak_bytes"] <= lora["peak_bytes"]
    assert dynamic["parameters"] == 2 * (768 + 768) + 4 + 16

    def sigma_of_a() -> None:
        A, H, W = (torch.randn(*shape, requires_grad=True) for shape in ((2, 768), (2, 2), (2, 8)))
        sigma(A.T, H, W, ANL(skip=False)).T.sum().backward()

    once_a_step = calls_of(sigma_of_a)
    for name in ("randn", "normal_", "sum", "ones_like"):
        del once_a_step[name]
    static = step_counts(layer, "aurora-static")
    assert static["calls"]["both"] <= 14 + once_a_step.total()
    assert static["saved_bytes"] <= lora["saved_bytes"]


def test_what_training_costs_with_an_operator_for_sigma(layer: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "triton_serves", lambda *_: True)  # as on CUDA; the operators have a CPU side
    lora = step_counts(layer, "lora-r8")
    for name in ("aurora-dynamic", "aurora-static"):
        found = step_counts(layer, name)
        assert found["calls"]["both"] <= 14
        assert found["calls"]["forward"] < lora["calls"]["forward"]
        assert found["calls"]["both"] < lora["calls"]["both"]
        assert found["saved_bytes"] < lora["saved_bytes"]


def test_what_inference_may_cost(layer: Case) -> None:
    base = run_counts(layer, "frozen")
    assert base["names"] == Counter({"addmm": 1})
    assert run_counts(layer, "aurora-merged")["names"] == base["names"]
    assert run_counts(layer, "aurora-calibrated")["calls"]["forward"] <= 5
    assert run_counts(layer, "lora-r8")["calls"]["forward"] == 5


@pytest.mark.slow
def test_a_workload_gives_a_record_that_tables_show(tmp_path: Path) -> None:
    args = ["--quick", "--rounds", "2", "--threads", "1", "--output", str(tmp_path)]
    for workload, files in (("linear", 1), ("scaling", 1)):
        with patch.object(sys, "argv", ["speed", workload, *args]), patch.object(speed, "units", eager):
            speed.main()
        record = json.loads((tmp_path / f"{workload}.json").read_text())
        shown = [table.markdown() for table in tables(record)]
        assert len(shown) > files
    entries = {
        one["variant"]: one for one in json.loads((tmp_path / "linear.json").read_text())["cases"][0]["variants"]
    }
    assert entries["aurora-merged"]["inference"]["same_calls_as_base"]
    assert not entries["lora-r8"]["inference"]["same_calls_as_base"]
    assert entries["lora-r8"]["training"]["ratio"]["median"] == 1


def eager(workloads: list[str], compiled: bool) -> list[tuple[str, str, bool]]:
    return [(name, name, False) for name in workloads]
