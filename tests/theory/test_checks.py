"""`python -m theory`, with few searches."""

import json
from typing import Any

import pytest
import torch

from aurora_lora.forms import CALIBRATED, STATIC
from aurora_lora.ops import ANL, adaptive_nonlinear
from theory import checks
from theory.approximation import Adapter


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    few = {
        "ATTACK_STEPS": 20,
        "ATTACK_STARTS": 2,
        "DRAWS": 50,
        "REACH_SEEDS": 1,
        "INPUTS": 64,
        "HELD_OUT": 256,
        "SEEDS": (None,),
        "LINEAR_SEEDS": (None,),
        "every_anl": lambda: [ANL(skip=False), ANL("tanh", None, skip=True)],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in few.items():
            patch.setattr(checks, name, value)
        found = checks.run()
    json.dumps(found, allow_nan=False)  # every number is finite
    return found


def test_nothing_passes_a_bound(record: dict[str, Any]) -> None:
    for row in record["linear"]["rows"]:
        assert min(row["mean_square"]) >= 1 - 1e-12
        assert min(row["supremum"]) >= 1 - 1e-12
    assert record["linear"]["svd"] == pytest.approx({"mean_square": 1, "supremum": 1})
    for row in record["gradients"]["rows"]:
        assert max(*row["random"].values(), *row["attacked"].values()) <= 1 + 1e-9
    for row in record["nonlinear"]["rows"]:
        for student in checks.STUDENTS:
            # any merge is linear: it leaves what the best linear map leaves, at least
            assert row[student]["calibrated"] >= row["linear_2"] - 1e-9
            assert row[student]["static"] >= row["linear_2"] - 1e-9
            assert min(row[student].values()) >= row["floor"] - 1e-9
        assert row["linear_2"] >= max(row["linear_4"], row["floor"]) - 1e-9


def test_the_merges_are_the_papers_and_that_of_least_squares() -> None:
    draw, anl = torch.Generator().manual_seed(0), ANL(skip=False)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    adapter = Adapter(normal(2, 6), normal(3, 2), normal(2, 2), normal(2, anl.n_basis))
    x, held_out = normal(50, 6), normal(20, 6)
    found = checks._merges(adapter, x, held_out, anl)
    static = adaptive_nonlinear(adapter.A.T, adapter.H, adapter.spline_weight, anl).T
    torch.testing.assert_close(found[STATIC], held_out @ (adapter.B @ static).T)
    hidden = adaptive_nonlinear(x @ adapter.A.T, adapter.H, adapter.spline_weight, anl)
    best = torch.linalg.lstsq(x, hidden).solution
    torch.testing.assert_close(found[CALIBRATED], held_out @ best @ adapter.B.T)
