"""Figures of a set of runs: the series that are drawn, their labels and units."""

from collections.abc import Callable
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.groups import groups, half_interval
from aurora_lora.lab.report.run_figures import curves_figure, rank_figure, score_figure, style

Result = dict[str, Any]


def series(ax: Any) -> dict[str, list[Any]]:
    return {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in ax.containers}


def test_score_against_parameters(results: list[Result], make_result: Callable[..., Result]) -> None:
    (found,) = groups(results).values()
    (ax,) = score_figure(found, "accuracy").axes
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("trained parameters outside the head", "accuracy, %")
    # of the two learning rates of LoRA, the one that is better on validation data
    assert series(ax) == {"lora": [pytest.approx((5000, 81))], "aurora (calibrated)": [pytest.approx((1250, 82))]}
    (low, high) = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
    half = 100 * half_interval([0.80, 0.81, 0.82])
    assert (low, high) == pytest.approx((81 - half, 81 + half))
    probe = groups([make_result("linear-probe", 1e-3, 0, 0, {"merged": 0.6}), *results])
    (ax,) = score_figure(next(iter(probe.values())), "accuracy").axes
    assert ax.get_xscale() == "symlog"
    assert list(ax.get_xticks())[:3] == [0, 1000, 10000]


def test_settings_of_the_same_size_stand_side_by_side(make_result: Callable[..., Result]) -> None:
    sizes = {"lora": 1000, "dora": 990, "moslora": 2000}
    made = [make_result(name, 1e-3, 0, params, {"merged": 0.8}) for name, params in sizes.items()]
    (ax,) = score_figure(next(iter(groups(made).values())), "accuracy").axes
    ((first, _),), ((second, _),), ((third, _),) = series(ax).values()
    assert second < 990 < 1000 < first
    assert first / second < 10**0.2
    assert third == 2000
    assert [label.get_text() for label in ax.get_xticklabels()] == ["500", "1,000", "2,000"]  # one power of ten is few


def test_score_against_rank(make_result: Callable[..., Result]) -> None:
    made = [
        make_result("lora", 1e-3, seed, 100 * r, {"merged": 0.7 + r / 100}, r=r, lora_alpha=2 * r)
        for r in (4, 2)
        for seed in (0, 1)
    ]
    (found,) = groups(made).values()
    (ax,) = rank_figure(found, "accuracy").axes
    assert series(ax) == {"lora": [pytest.approx((2, 72.5)), pytest.approx((4, 74.5))]}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank r", "accuracy, %")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "4"]
    assert rank_figure(found, "nll").axes[0].get_ylabel() == "nll, less is better"
    with pytest.raises(UserError, match="one method at two ranks"):
        rank_figure(found[:1], "accuracy")


def test_a_panel_for_each_test_set(make_result: Callable[..., Result]) -> None:
    made = [make_result("lora", 1e-3, 0, 100 * r, {"merged": 0.5}, r=r) for r in (2, 4)]
    for one in made:
        sets = {name: {"merged": {"accuracy": value}} for name, value in (("boolq", 0.6), ("piqa", 0.7), ("siqa", 0.8))}
        one["metric"]["by_test_set"] = sets
    axes = rank_figure(next(iter(groups(made).values())), "accuracy").axes
    assert [ax.get_title(loc="left") for ax in axes] == ["boolq", "piqa", "siqa", ""]
    assert [series(ax)["lora"][1] for ax in axes[:3]] == [pytest.approx((4, value)) for value in (60, 70, 80)]
    assert [ax.axison for ax in axes] == [True, True, True, False]
    assert [ax.get_xlabel() for ax in axes[1:3]] == ["rank r", "rank r"]  # the last one of each column
    assert [ax.get_ylabel() for ax in axes[:3]] == ["accuracy, %", "", "accuracy, %"]


def test_learning_curves(results: list[Result]) -> None:
    for one in results:
        if one["method"] == "aurora":
            one["metric"]["selected_by"]["value"] = 0.9
    (found,) = groups(results).values()
    figure = curves_figure(found, "accuracy")
    loss, score = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation accuracy, %"]
    assert score.get_xlabel() == "epoch"
    assert loss.lines[0].get_label() == "aurora (calibrated)"  # the best one first
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([1.1, 0.6])  # the mean of 1.0, 1.1, 1.2 first
    assert score.lines[0].get_ydata().tolist() == pytest.approx([65, 70])
    band = loss.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.5, 1.2))
    assert figure.legends[0].get_texts()[0].get_text() == "aurora (calibrated)"
    for one in results:
        one["metric"]["name"] = "clip_i"  # measured in the end only
    assert (
        curves_figure(next(iter(groups(results).values())), "clip_i").axes[1].get_ylabel() == "validation accuracy, %"
    )
    for one in results:
        one["epochs"] = one["epochs"][:1]
    with pytest.raises(UserError, match="evaluated more than once"):
        curves_figure(next(iter(groups(results).values())), "accuracy")
    for one in results:
        one["epochs"] = []
    with pytest.raises(UserError, match="results with epochs"):
        curves_figure(next(iter(groups(results).values())), "accuracy")


def test_no_two_series_look_alike() -> None:
    looks = [{key: value for key, value in style(place).items() if key != "color"} for place in range(30)]
    assert all(looks.count(look) == 1 for look in looks)  # in grey, too
