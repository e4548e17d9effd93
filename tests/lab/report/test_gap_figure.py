"""What a merge loses, by layer: a panel for each kind of module."""

import math
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.measured import gap_figure


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
