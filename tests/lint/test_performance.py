"""The page of the benchmark, on records with known figures."""

import copy
import json
import sys
from pathlib import Path

from make.performance import environment, parts

sys.path.insert(0, str(Path(__file__).parents[1] / "lab" / "report"))

from bench_records import ALL, ratio, record

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_page(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    figures = tmp_path / "figures"
    empty = parts(results, figures)
    assert all("ot measured" in text for text in empty.values())
    assert not figures.exists()
    page = PAGE.read_text(encoding="utf-8")
    for name in empty:  # each has its place
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- end {name} -->") == 1
    for name, value in ALL.items():
        (results / f"{name}.json").write_text(json.dumps(value))
    full = parts(results, figures)
    assert full.keys() == empty.keys()
    assert not any("ot measured" in text for text in full.values())
    assert "![Time of MiniLM-L6 by variant](figures/bench-minilm-l6.svg)" in full["bench-minilm-l6"]
    assert {path.stem for path in figures.iterdir()} == {f"bench-{name}" for name in (*ALL, "linear-grid")}
    budget = {line.split(" | ")[0].strip("| "): line for line in full["bench-targets"].splitlines()[2:]}
    assert budget["training step, MiniLM-L6"] == (
        "| training step, MiniLM-L6 | 1.000 | <= 1.02 | 0.987 (0.977-0.997) |"
    )
    assert "| 14 | <= 34 | 33 |" in budget["calls of a layer, forward and backward, CPU"]
    assert "| 14 | <= 14 | 12 |" in budget["the same, sigma as a fused kernel (CUDA)"]
    assert "1.001 (0.991-1.011), same calls" in budget["merged model, inference / base, SmolLM2-135M"]
    assert "our target" not in full["bench-targets"]
    assert "8B AuroRA r=2" in full["bench-paper"]
    assert "8B AuroRA r=2" not in full["bench-scaling"]


def test_a_quick_look_is_not_for_the_page(tmp_path: Path) -> None:
    quick = record("minilm-l6")
    quick["settings"]["quick"] = True
    (tmp_path / "minilm-l6.json").write_text(json.dumps(quick))
    assert "Not measured yet" in parts(tmp_path, tmp_path / "figures")["bench-minilm-l6"]


def test_a_missed_target_is_said_in_words(tmp_path: Path) -> None:
    slow = record("smollm2-135m")
    dynamic = next(one for one in slow["cases"][0]["variants"] if one["variant"] == "aurora-dynamic")
    dynamic["training"]["ratio"] = ratio(1.04)
    (tmp_path / "smollm2-135m.json").write_text(json.dumps(slow))
    text = parts(tmp_path, tmp_path / "figures")["bench-targets"]
    assert text.endswith("The training step of SmolLM2-135M is 4% slower than LoRA's; our target was 1%.")
    layer = copy.deepcopy(ALL["linear"])
    for variant in (one for case in layer["cases"] for one in case["variants"]):
        if variant["variant"] == "aurora-dynamic":
            variant["training"]["calls"]["both"] = 35
    (tmp_path / "linear.json").write_text(json.dumps(layer))
    text = parts(tmp_path, tmp_path / "figures")["bench-targets"]
    assert "A layer makes 35 calls forward and backward on a CPU; our target was 34. The training step of" in text


def test_a_commit_with_changes_is_told() -> None:
    one = copy.deepcopy(record("minilm-l6"))
    one["environment"]["git_commit"] = "0123456789" * 4 + "-dirty"
    assert environment(one).endswith("; commit 012345678, with changes.")
