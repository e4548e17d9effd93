"""Figures of a set of runs: the series that are drawn, their labels and units."""

from collections.abc import Callable
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.forms import STATIC
from aurora_lora.lab.report.figures import FORM_STYLES, GREY, about, colour, style
from aurora_lora.lab.report.groups import groups, half_interval
from aurora_lora.lab.report.run_figures import curves_figure, rank_figure, score_figure
from aurora_lora.methods import METHODS

Result = dict[str, Any]
Overlaps = Callable[[list[Any]], list[Any]]


def series(ax: Any) -> dict[str, list[Any]]:
    return {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in ax.containers}


def test_scores_by_name(results: list[Result], make_result: Callable[..., Result]) -> None:
    (found,) = groups(results).values()
    (ax,) = score_figure(found, "accuracy").axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("accuracy, %", "")
    # the best first; of the two learning rates of LoRA, the one that is better on validation data
    assert [label.get_text() for label in ax.get_yticklabels()] == ["aurora (calibrated)", "lora: learning_rate 0.001"]
    assert [bars.lines[0].get_xydata().tolist() for bars in ax.containers] == [
        [pytest.approx([82, 0])],
        [pytest.approx([81, 1])],
    ]
    assert [text.get_text() for text in ax.texts][:2] == ["1,250", "5,000"]  # trained parameters
    low, high = ax.containers[1].lines[2][0].get_segments()[0][:, 0]
    half = 100 * half_interval([0.80, 0.81, 0.82])
    assert (low, high) == pytest.approx((81 - half, 81 + half))
    for one in results:
        for scores in one["metric"]["by_form"].values():
            scores["nll"] = 1 - scores["accuracy"]
    (found,) = groups([*results, make_result("bitfit", 1e-3, 0, 9, {"merged": 0.5})]).values()
    (ax,) = score_figure(found, "nll").axes  # less is better; what has no score is left out
    assert [label.get_text() for label in ax.get_yticklabels()] == ["aurora (calibrated)", "lora: learning_rate 0.001"]
    with pytest.raises(UserError, match="no run has a finite captured"):
        score_figure(found, "captured")


def test_a_rank_has_one_point_whatever_the_alphas(make_result: Callable[..., Result]) -> None:
    """Of several alphas the best on validation data, which here is that of the lower rate."""
    made = [
        make_result("lora", rate, 0, 100 * r, {"merged": 0.5 + 0.1 * r}, r=r, lora_alpha=alpha)
        for r in (2, 4)
        for rate, alpha in ((1e-3, 2), (2e-3, 16))
    ]
    for one in made:
        one["metric"]["by_form"]["merged"]["accuracy"] -= one["recipe"]["training"]["learning_rate"]
    (found,) = groups(made).values()
    (ax,) = rank_figure(found, "accuracy").axes
    assert [y for _, y in series(ax)["lora"]] == pytest.approx([69.9, 89.9])
    (found,) = groups(made[:2]).values()
    with pytest.raises(UserError, match="two ranks at least"):
        rank_figure(found, "accuracy")


def test_of_several_alphas_one_of_fewer_seeds_is_not_shown(make_result: Callable[..., Result]) -> None:
    made = [
        make_result("lora", 1e-3, seed, 100 * r, {"merged": 0.5 + alpha / 100}, r=r, lora_alpha=alpha)
        for r in (2, 4)
        for alpha, seeds in ((2, (0, 1)), (16, (0,)))
        for seed in seeds
    ]
    for one in made:
        one["metric"]["selected_by"]["value"] = one["recipe"]["method"]["lora_alpha"] / 100
    (found,) = groups(made).values()
    (ax,) = rank_figure(found, "accuracy").axes
    assert [y for _, y in series(ax)["lora"]] == pytest.approx([52.5, 52.5])


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
    assert rank_figure(found, "nll").axes[0].get_ylabel() == "neg. log-likelihood, less is better"
    with pytest.raises(UserError, match="one method at two ranks"):
        rank_figure(found[:1], "accuracy")
    figure = about(rank_figure(found, "nll_norm"), "a task, a model")
    figure.draw_without_rendering()
    (title,), label = figure.texts, figure.axes[0].yaxis.label.get_window_extent()
    assert label.y0 >= 0
    assert label.y1 < title.get_window_extent().y0


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
    figure = curves_figure(found)
    loss, score = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation accuracy, %"]
    assert score.get_xlabel() == "epoch"
    assert loss.lines[0].get_label() == "aurora (calibrated)"  # the best one first
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([1.1, 0.6, 13 / 30])  # the mean of 1.0, 1.1, 1.2 first
    assert score.lines[0].get_ydata().tolist() == pytest.approx([65, 70, 75])
    band = loss.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1 / 3, 1.2))
    of_scores = score.collections[0].get_paths()[0].vertices[:, 1]
    assert 1 < of_scores.min() <= 65  # in per cent, as the line
    assert 75 <= of_scores.max() <= 100
    assert figure.legends[0].get_texts()[0].get_text() == "aurora (calibrated)"
    for one in results:
        one["metric"]["name"] = "clip_i"  # measured in the end only
    assert curves_figure(next(iter(groups(results).values()))).axes[1].get_ylabel() == "validation accuracy, %"
    for one in results:
        one["epochs"] = one["epochs"][:2]
    with pytest.raises(UserError, match="evaluated at least 3 times"):
        curves_figure(next(iter(groups(results).values())))
    for one in results:
        one["epochs"] = []
    with pytest.raises(UserError, match="results with epochs"):
        curves_figure(next(iter(groups(results).values())))


def test_a_method_has_one_colour() -> None:
    assert len({colour(name) for name in ("lora", "LoRA r=8", "lora: r 2", "LoRA")}) == 1
    for name in METHODS:
        assert colour(name) != GREY, name
        assert style(3, name)["color"] == style(0, name)["color"] == colour(name)
    assert colour("full fine-tuning") == colour("full")
    assert colour("linear probe") == colour("linear-probe") == colour("frozen base")
    assert colour("AuroRA paper r=2 (static)") == colour("aurora-paper", STATIC) == FORM_STYLES[STATIC]["color"]
    assert colour("MoSLoRA r=8") not in (colour("LoRA"), colour("DoRA"))
    assert colour("ours") == GREY
    assert len({colour(name) for name in ("aurora", "lora", "dora", "moslora", "pissa", "bitfit", "vera", "full")}) == 8
