"""`aurora theory`, with few searches: its record, what it prints and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.forms import CALIBRATED, STATIC
from aurora_lora.lab import theory
from aurora_lora.lab.theory import checks
from aurora_lora.lab.theory.approximation import Adapter
from aurora_lora.ops import ANL, adaptive_nonlinear, nonlinear_columns


@dataclass
class Small:
    """What one run of the command left."""

    record: dict[str, Any]
    folder: Path
    printed: Any
    steps: int
    expected_steps: int


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("theory") / "out"
    steps: list[int] = []
    run = checks.run

    def counted(seed: int, advance: Callable[[], None]) -> dict[str, Any]:
        return run(seed, lambda: (steps.append(1), advance()))

    few = {
        "ATTACK_STEPS": 20,
        "ATTACK_STARTS": 2,
        "DRAWS": 50,
        "REACH_SEEDS": 1,
        "INPUTS": 64,
        "HELD_OUT": 256,
        "SEEDS": (None,),
        "LINEAR_SEEDS": (None,),
        "GAINS": (0.5, 4.0),
        "every_anl": lambda: [ANL(skip=False), ANL("tanh", None, skip=True)],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in few.items():
            patch.setattr(checks, name, value)
        patch.setattr(theory, "run", counted)
        threads = torch.get_num_threads()
        printed = CliRunner().invoke(cli.app, ["theory", "--output", str(folder)])
        assert torch.get_num_threads() == threads
        assert printed.exit_code == 0, printed.output
        record = json.loads((folder / "theory.json").read_text())
        return Small(record, folder, printed, sum(steps), checks.total_steps())


def test_command_prints_tables_and_writes_what_it_names(small: Small) -> None:
    lines = small.printed.stdout.splitlines()
    paths = lines.pop().removeprefix("wrote ").split(", ")
    assert sorted(paths) == sorted(str(path) for path in small.folder.iterdir())
    assert sorted({Path(path).suffix for path in paths}) == [".json", ".png", ".svg"]
    assert max(map(len, lines)) <= 80
    text = small.printed.stdout
    for title in ("Appendix C, Eq. 11", "Proposition 2.2", "Proposition 2.1, linear M", "Nonlinear targets"):
        assert title in text
    assert "proven" not in text.lower()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = CliRunner().invoke(cli.app, ["theory", "--output", str(tmp_path / "file" / "below")])
    assert failed.exit_code == 2
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "cannot write" in failed.stderr
    assert CliRunner().invoke(cli.app, ["theory", "--seed", "-1"]).exit_code == 2


def test_progress_comes_to_its_end(small: Small) -> None:
    assert small.steps == small.expected_steps


def test_record_is_finite_json(small: Small) -> None:
    record = small.record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {"schema", "seed", "versions", "appendix_c", "gradients", "linear", "nonlinear"} == record.keys()


def test_nothing_passes_a_bound(small: Small) -> None:
    record = small.record
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
    weak, strong = record["nonlinear"]["gains"]
    assert weak["linear"] < strong["linear"]
    assert strong["dynamic"] < strong["linear"]


def test_the_merges_are_the_papers_and_that_of_least_squares() -> None:
    draw, anl = torch.Generator().manual_seed(0), ANL(skip=False)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    adapter = Adapter(normal(2, 6), normal(3, 2), normal(2, 2), normal(2, anl.n_basis))
    x, held_out = normal(50, 6), normal(20, 6)
    found = checks._merges(adapter, x, held_out, anl)
    static = nonlinear_columns(adapter.A, adapter.H, adapter.spline_weight, anl)
    torch.testing.assert_close(found[STATIC], held_out @ (adapter.B @ static).T)
    hidden = adaptive_nonlinear(x @ adapter.A.T, adapter.H, adapter.spline_weight, anl)
    best = torch.linalg.lstsq(x, hidden).solution
    torch.testing.assert_close(found[CALIBRATED], held_out @ best @ adapter.B.T)


def test_the_mean_of_a_target_is_no_gain() -> None:
    x, held_out = torch.randn(2, 30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f, g = checks._centred(lambda x: x.abs() + 5, x, held_out)
    mean = (held_out.abs() + 5).mean(0)
    torch.testing.assert_close(f, x.abs() + 5 - mean)
    torch.testing.assert_close(g, held_out.abs() + 5 - mean)


def test_gradients_grow_with_the_weights(small: Small) -> None:
    growth = small.record["gradients"]["growth"]
    for name in ("AuroRA", "LoRA"):
        assert growth[2][name] > 50 * growth[1][name]


def test_every_sigma() -> None:
    sigmas = checks.every_anl()
    assert len(sigmas) == len(set(sigmas)) == 29
    assert sum(anl.is_identity for anl in sigmas) == 1
