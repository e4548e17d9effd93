"""What a merge loses, by layer: a panel for each kind of module."""

import math
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.gap_figure import gap_figure


def test_a_gap_that_is_not_finite_is_a_gap_in_the_line() -> None:
    def gap(*errors: float | None) -> dict[str, Any]:
        layers = [
            {"layer": f"m.{place}.query", "form": "static", "relative_error": error}
            for place, error in enumerate(errors)
        ]
        return {"layers": layers}

    (ax,) = gap_figure(gap(0.1, None, 0.3)).axes
    drawn = list(ax.get_lines()[0].get_ydata())
    assert (drawn[0], math.isnan(drawn[1]), drawn[2]) == (10, True, 30)
    (ax,) = gap_figure(gap(0.1, None), gap(0.3, 0.2)).axes  # of the seeds that have one
    assert list(ax.get_lines()[0].get_ydata()) == pytest.approx([20, 20])
    gap_figure(gap(None))


def test_gap_figure_has_a_panel_for_each_kind_of_module() -> None:
    layers = [
        {"layer": f"layer.{i}.{kind}", "form": form, "relative_error": error * (i + 1)}
        for i in range(3)
        for kind in ("query", "value")
        for form, error in (("static", 0.3), ("calibrated", 0.05))
    ]
    figure = gap_figure({"layers": layers})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["query", "value"]
    drawn = {of_form.get_label(): list(of_form.lines[0].get_ydata()) for of_form in figure.axes[0].containers}
    assert drawn["static (the paper's merge)"] == pytest.approx([30, 60, 90])
    with pytest.raises(UserError, match="at least one layer"):
        gap_figure({"layers": []})


def test_gap_figure_tells_layers_of_one_name_apart() -> None:
    """All linear layers of BERT, one without an adapter: three in a block are `dense`, and so is the pooler."""
    kinds = ("attention.output.dense", "intermediate.dense", "output.dense")
    names = [f"bert.layer.{n}.{kind}" for n in range(3) for kind in kinds if (n, kind) != (1, "intermediate.dense")]
    layers = [
        {"layer": f"base_model.model.{name}", "form": "static", "relative_error": 0.1}
        for name in [*names, "bert.pooler.dense"]
    ]
    figure = gap_figure({"layers": layers})
    shown = {title: ax for ax in figure.axes if (title := ax.get_title(loc="left"))}
    assert [*shown] == [*kinds, "bert.pooler.dense"]
    assert [list(ax.lines[0].get_xdata()) for ax in shown.values()] == [[0, 1, 2], [0, 2], [0, 1, 2], [0]]
    assert [ax.get_xlabel() for ax in shown.values()] == ["layer", "layer", "layer", ""]


def test_gap_figure_of_several_seeds() -> None:
    gaps = [{"layers": [{"layer": "l.0.q", "form": "static", "relative_error": error}]} for error in (0.1, 0.2, 0.6)]
    (ax,) = gap_figure(*gaps).axes
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([30])
    assert ax.get_ylabel() == "error of the adapter's output, %"
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((10, 60))
