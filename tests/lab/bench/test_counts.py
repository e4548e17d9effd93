"""The counts of the benchmark, and the guard on what the adapter path may cost in calls and bytes."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from aurora_lora.lab.bench import counts
from aurora_lora.lab.bench.counts import Calls, calls_of, peak_bytes, profiled_calls
from aurora_lora.lab.bench.measure import Inference, TrainingStep, count_run, count_step
from aurora_lora.lab.bench.variants import VARIANTS, build
from aurora_lora.lab.bench.workloads import Case, linear_case
from aurora_lora.lab.saved_tensors import count_saved
from aurora_lora.ops import dispatch, sigma
from aurora_lora.ops.anl import ANL

CPU = torch.device("cpu")


# ---------------------------------------------------------------- the counters


def test_launches_of_both_vendors_runtimes_are_counted() -> None:
    """Those of PyTorch's own kernels and those by which Triton launches."""
    launches = ("cudaLaunchKernelExC", "cuLaunchKernelEx", "hipLaunchKernel", "hipModuleLaunchKernel")
    assert all(name.startswith(counts._LAUNCHES) for name in (*launches, "hipDrvLaunchKernelEx"))
    assert not any(name.startswith(counts._LAUNCHES) for name in ("cudaMemcpyAsync", "hipModuleLoadData"))


def test_views_are_no_calls() -> None:
    x = torch.randn(4, 6)
    with Calls() as calls:
        (x.T.reshape(3, 8)[1:].unsqueeze(0) + 1).relu()
    assert calls.names == Counter({"clone": 1, "add": 1, "relu": 1})
    assert calls.total == 3


def test_a_custom_operator_is_one_call() -> None:
    @torch.library.custom_op("aurora_lora_test::three_steps", mutates_args=())
    def three_steps(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).relu() * 2

    names = calls_of(lambda: three_steps(torch.ones(3)))
    assert names["three_steps"] == 1
    assert names.keys() <= {"three_steps", "ones"}


def test_the_backward_pass_is_counted() -> None:
    a, b = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    assert calls_of(lambda: (a @ b).sum().backward())["mm"] == 3


def test_the_profiler_counts_eager_calls_alike() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    x = torch.randn(4, 8)
    with torch.no_grad():
        assert profiled_calls(lambda: model(x)) == calls_of(lambda: model(x)) == Counter({"addmm": 2, "relu": 1})


def test_saved_bytes_count_a_storage_once() -> None:
    x = torch.randn(100, 10, requires_grad=True)
    weight = torch.randn(10, 10, requires_grad=True)
    assert count_saved(lambda: x @ weight + x @ weight).bytes() == 4000 + 400
    assert count_saved(lambda: x @ weight, [weight]).bytes() == 4000
    assert count_saved(lambda: x + 1).bytes() == 0


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
    return count_step(step)


def run_counts(case: Case, variant: str) -> dict[str, Any]:
    run = Inference(build(VARIANTS[variant], case, training=False), case)
    run()
    return count_run(run)


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
    monkeypatch.setattr(dispatch, "triton_serves", lambda *_: True)  # as on CUDA; the operators have a CPU side
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
