"""The tables and figures of `python -m theory`, on the committed record."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from theory.report import (
    circle_figure,
    gradients_figure,
    linear_figure,
    nonlinear_figure,
    theory_figures,
    theory_tables,
)

RECORD = Path(__file__).parents[2] / "results" / "theory" / "theory.json"


@pytest.fixture
def record() -> dict[str, Any]:
    return copy.deepcopy(json.loads(RECORD.read_text()))


def table(record: dict[str, Any], name: str) -> dict[str, list[str]]:
    """The cells of a table by its first column."""
    return {cells[0]: list(cells[1:]) for cells in theory_tables(record)[name].rows}


def test_cells_show_the_record(record: dict[str, Any]) -> None:
    record["gradients"]["rows"][0]["attacked"]["A"] = 0.5
    record["linear"]["rows"][0] |= {"mean_square": [1.5, 1.25], "supremum": [1.0, 2.0]}
    record["nonlinear"]["rows"][0]["channelwise"]["static"] = 0.125
    record["appendix_c"]["reach"][0]["distance"] = 0.25
    assert table(record, "theory-gradients")["A"][1] == "0.500"
    assert table(record, "theory-gradients")["H"][4:] == ["-", "-"]  # LoRA has none
    linear = theory_tables(record)["theory-linear"]
    assert list(linear.rows[0]) == ["truncated SVD", "", "0", "0", "", ""]
    assert list(linear.rows[1][2:4]) == ["0.25", "0"]
    assert table(record, "theory-nonlinear-channelwise")["tanh teacher"][-1] == "12.5"
    assert table(record, "theory-reach")["LoRA (sigma = identity)"] == ["0.2500"]


def test_a_search_below_the_bound_would_show(record: dict[str, Any]) -> None:
    record["linear"]["rows"][0]["mean_square"] = [0.9]
    linear = theory_tables(record)["theory-linear"]
    assert linear.rows[1][2].startswith("-")


def test_figures_show_the_record(record: dict[str, Any]) -> None:
    assert set(theory_figures(record)) == {"theory-circle", "theory-gradients", "theory-linear", "theory-nonlinear"}
    panels = circle_figure(record).axes
    assert [ax.get_title(loc="left") for ax in panels] == ["LoRA", "LeakyReLU", "tanh", "sigmoid", "ReLU"]
    (drawn,) = panels[4].lines[1:2]
    assert list(drawn.get_xdata()) == [point[0] for point in record["appendix_c"]["circle"]["relu"]]

    (ax,) = gradients_figure(record).axes
    series = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert series["AuroRA, attacked"] == list(record["gradients"]["rows"][0]["attacked"].values())
    assert len(series["LoRA, random"]) == 3
    assert ax.get_xlabel() == "largest norm of the gradient / its bound"

    mean_square, supremum = linear_figure(record).axes
    assert (mean_square.get_ylabel(), supremum.get_ylabel()) == ("mean square error / bound", "supremum / bound")
    shown = [value for line in mean_square.lines[:-1] for value in line.get_ydata()]
    assert sorted(shown) == sorted(value for row in record["linear"]["rows"] for value in row["mean_square"])

    bars, gains = nonlinear_figure(record).axes
    heights = {container.get_label(): [bar.get_height() for bar in container] for container in bars.containers}
    expected = [100 * row["channelwise"]["dynamic"] for row in record["nonlinear"]["rows"]]
    assert heights["AuroRA, rank 2, as trained"] == pytest.approx(expected)
    assert list(gains.lines[0].get_ydata()) == [100 * row["linear"] for row in record["nonlinear"]["gains"]]
