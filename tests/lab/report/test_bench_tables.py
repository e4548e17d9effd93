"""Tables and figures of the benchmark, on records with known figures."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from aurora_lora.lab.report.bench_figures import grid_figure, scaling_figure, times_figure
from aurora_lora.lab.report.bench_tables import exponents, grid, interval_text, tables, times
from aurora_lora.text_table import TextTable

sys.path.insert(0, str(Path(__file__).parent))

from bench_records import ALL, ONE


@pytest.mark.parametrize("name", ALL)
def test_tables_fit_a_terminal(name: str) -> None:
    for rows in tables(ALL[name]):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(rows)
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
    assert interval_text(ONE) == "1"


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
    assert axes[0].get_title(loc="left") == "d = 768\nslope: base 1.00, LoRA 1.00, AuroRA 1.00"
    assert list(axes[0].get_lines()[0].get_ydata()) == pytest.approx([12.8, 25.6, 51.2])
