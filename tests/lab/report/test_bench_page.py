"""Tables, figures and the page of the benchmark, on records with known figures."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aurora_lora.lab.bench.analytic_cost import costs
from aurora_lora.lab.report.bench_figures import grid_figure, scaling_figure, times_figure
from aurora_lora.lab.report.bench_page import parts
from aurora_lora.lab.report.bench_tables import exponents, grid, interval, tables, times
from aurora_lora.text_table import TextTable

PAGE = Path(__file__).parents[3] / "docs" / "performance.md"


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.01, "high": median + 0.01}


ONE = {"median": 1.0, "low": 1.0, "high": 1.0}


def entry(name: str, label: str, step: float | None, eval_: float, both: int, compiled: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"variant": name, "label": label, "compiled": compiled}
    calls = {"forward": 5, "both": both}
    if step is not None:
        found["training"] = {
            "calls": calls,
            "per_layer": calls,
            "parameters": 3092,
            "saved_bytes": 15_118_000,
            "saved_bytes_but_weights": 12_700_000,
            "peak_bytes": 25_400_000,
            "seconds": 0.1,
            "ratio": ONE if name == "lora-r8" else ratio(step),
        }
    found["inference"] = {
        "calls": {"forward": 3},
        "per_layer": {"forward": 3},
        "same_calls_as_base": name in ("frozen", "aurora-merged"),
        "seconds": 0.04,
        "ratio": ONE if name == "frozen" else ratio(eval_),
    }
    if compiled:
        for kind, value in (("training", 0.8), ("inference", 0.9)):
            if kind in found:
                found[kind]["ratio_to_eager"] = ratio(value)
    return found


def variants(compiled: bool = False) -> list[dict[str, Any]]:
    return [
        entry("frozen", "frozen base", 0.9, 1.0, 4, compiled),
        entry("lora-r8", "LoRA r=8", 1.0, 1.2, 14, compiled),
        entry("aurora-dynamic", "AuroRA dynamic r=2", 0.987, 1.1, 33, compiled),
        entry("aurora-static", "AuroRA static r=2", 0.95, 1.1, 33, compiled),
        entry("aurora-calibrated", "AuroRA calibrated r=2", None, 1.05, 0, compiled),
        entry("aurora-merged", "AuroRA merged", None, 1.001, 0, compiled),
        entry("aurora-r8", "AuroRA dynamic r=8", 1.03, 1.3, 33, compiled),
    ]


def record(workload: str, **changes: Any) -> dict[str, Any]:
    sizes = {"tokens": 2048, "batch": 32, "length": 64, "adapted_layers": 12}
    return {
        "schema": 1,
        "workload": workload,
        "compiled": False,
        "settings": {"rounds": 30, "threads": 1, "device": "cpu", "dtype": "float32", "quick": False},
        "cases": [{"sizes": sizes, "variants": variants()}],
        "environment": {
            "device": "a CPU, 2 cores",
            "load_before": [0.1, 0.2, 0.3],
            "versions": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
            "git_commit": "0123456789abcdef",
        },
        "status": "finished",
        **changes,
    }


def linear(**changes: Any) -> dict[str, Any]:
    grid_ = [(256, 384), (4096, 384), (256, 768), (4096, 768), (256, 1536), (4096, 1536)]
    cases = [
        {"sizes": {"tokens": t, "d": d, "layers": 1, "adapted_layers": 1}, "variants": variants()} for t, d in grid_
    ]
    operator = {name: {"calls": {"both": 12}} for name in ("lora-r8", "aurora-dynamic", "aurora-static")}
    return record("linear", cases=cases, with_operator=operator, **changes)


def compiled() -> dict[str, Any]:
    sizes = {"tokens": 4096, "d": 768, "layers": 1, "adapted_layers": 1}
    cases = [{"sizes": sizes, "variants": [*variants()[:3], *variants(compiled=True)]}]
    return record("linear", compiled=True, cases=cases)


def scaling() -> dict[str, Any]:
    points = [
        {
            "value": n,
            "seconds": {"frozen": n / 1e4, "lora": n / 8e3, "aurora": n / 9e3},
            "added": {"lora": ratio(1e-3), "aurora": ratio(-1e-3)},
        }
        for n in (128, 256, 512)
    ]
    found = {"exponent": 1.0, "standard_error": 0.0}
    axis = {
        "name": "tokens",
        "fixed": "d = 768",
        "labels": {"frozen": "frozen base", "lora": "LoRA r=8", "aurora": "AuroRA r=2"},
        "points": points,
        "fits": {
            "seconds": dict.fromkeys(("frozen", "lora", "aurora"), found),
            "added": {"lora": found, "aurora": None},
        },
    }
    names = ("tokens", "width", "rank", "layers", "adapters")
    axes = [{**axis, "name": name} for name in names]
    return record("scaling", axes=axes, paper=costs({"lora": 14, "aurora": 12}))


ALL = {
    "linear": linear(),
    "linear-compiled": compiled(),
    "minilm-l6": record("minilm-l6"),
    "smollm2-135m": record("smollm2-135m"),
    "scaling": scaling(),
}


@pytest.mark.parametrize("name", ALL)
def test_tables_fit_a_terminal(name: str) -> None:
    for rows in tables(ALL[name]):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(rows.rich())
        text = console.export_text()
        assert "…" not in text, text
        for row in rows.rows:  # no cell is broken into two lines
            assert any(line.strip().startswith(row[0]) and row[-1] in line for line in text.splitlines()), text


def test_times() -> None:
    found = {row[0]: row[1:] for row in times(ALL["minilm-l6"], ALL["minilm-l6"]["cases"][0]).rows}
    assert found["LoRA r=8"] == ["1", "1.200 (1.190-1.210)"]
    assert found["AuroRA dynamic r=2"] == ["0.987 (0.977-0.997)", "1.100 (1.090-1.110)"]
    assert found["AuroRA calibrated r=2"][0] == "as dynamic"
    assert found["AuroRA merged"] == ["-", "1.001 (0.991-1.011)"]
    both = {row[0]: row[1:] for row in times(ALL["linear-compiled"], ALL["linear-compiled"]["cases"][0]).rows}
    assert both["AuroRA dynamic r=2"] == ["0.99 (0.98-1.00)", "0.80", "1.10 (1.09-1.11)", "0.90"]
    assert both["AuroRA dynamic r=2, eager"] == ["0.99 (0.98-1.00)", "0.99", "1.10 (1.09-1.11)", "1.10"]
    assert interval(ONE) == "1"


def test_grid_and_exponents() -> None:
    rows = grid(ALL["linear"])
    assert rows.headers == ["tokens x width", "base", "AuroRA r=2", "AuroRA r=8", "AuroRA static r=2"]
    assert rows.rows[-1] == ["4,096 x 1,536", "0.90", "0.99 (0.98-1.00)", "1.03 (1.02-1.04)", "0.95 (0.94-0.96)"]
    assert exponents(ALL["scaling"]).rows[0] == ["tokens", *["1.00±0.00"] * 4, "-"]


def test_markdown() -> None:
    rows = TextTable("t", ["", "a", "b"], [["x", "1", "2"]], note="n")
    assert rows.markdown() == "|  | a | b |\n|---|--:|--:|\n| x | 1 | 2 |\n\nn"


def test_figures() -> None:
    training, inference = times_figure(ALL["minilm-l6"]).axes
    places = [container.lines[0].get_xdata()[0] for container in training.containers]
    assert places == [0.9, 1.0, 0.987, 0.95, 1.03]
    assert [label.get_text() for label in inference.get_yticklabels()][-2:] == ["AuroRA merged", "AuroRA dynamic r=8"]
    assert [text.get_text() for text in training.texts] == ["0.900", "1.000", "0.987", "0.950", "1.030"]
    assert [ax.get_title(loc="left") for ax in grid_figure(ALL["linear"]).axes] == ["d = 384", "d = 768", "d = 1,536"]
    axes = scaling_figure(ALL["scaling"]).axes
    assert [ax.get_xlabel() for ax in axes][:5] == ["tokens", "width", "rank", "layers", "adapters"]
    assert axes[0].get_title(loc="left") == "d = 768\nexponents 1.00 / 1.00 / 1.00"
    assert list(axes[0].get_lines()[0].get_ydata()) == pytest.approx([12.8, 25.6, 51.2])


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
    assert "| 14 | <= 14 | 12 |" in budget["the same, sigma one operator each way (CUDA)"]
    assert "1.001 (0.991-1.011), same calls" in budget["merged model, inference / base, SmolLM2-135M"]
    assert "8B AuroRA r=2" in full["bench-paper"]
    assert "8B AuroRA r=2" not in full["bench-scaling"]


def test_a_quick_look_is_not_for_the_page(tmp_path: Path) -> None:
    quick = record("minilm-l6")
    quick["settings"]["quick"] = True
    (tmp_path / "minilm-l6.json").write_text(json.dumps(quick))
    assert "Not measured yet" in parts(tmp_path, tmp_path / "figures")["bench-minilm-l6"]
