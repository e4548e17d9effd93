"""Figures of a set of runs: the series that are drawn, their labels and units."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from aurora_lora.errors import UserError
from aurora_lora.forms import STATIC
from aurora_lora.lab.report.figures import FORM_STYLES, GREY, about, colour, style
from aurora_lora.lab.report.run_figures import curves_figure, rank_figure, rates_figure, score_figure
from aurora_lora.lab.report.runs import Section
from aurora_lora.lab.report.tables import half_interval
from aurora_lora.methods import METHODS

Result = dict[str, Any]
Load = Callable[[list[Result]], Section]
Make = Callable[..., Result]


def series(ax: Any) -> dict[str, list[Any]]:
    return {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in ax.containers}


def test_scores_by_name(results: list[Result], make_result: Make, load: Load) -> None:
    (ax,) = score_figure(load(results).scores, "accuracy").axes
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
    scores = load([*results, make_result("bitfit", 1e-3, 0, 9, {"merged": 0.5})]).scores
    (ax,) = score_figure(scores, "nll").axes  # less is better; what has no score is left out
    assert [label.get_text() for label in ax.get_yticklabels()] == ["aurora (calibrated)", "lora: learning_rate 0.001"]
    with pytest.raises(UserError, match="no run has a finite captured"):
        score_figure(scores, "captured")


def test_score_against_rank(make_result: Make, load: Load) -> None:
    made = [
        make_result("lora", 1e-3, seed, 100 * r, {"merged": 0.7 + r / 100}, r=r, lora_alpha=2 * r)
        for r in (4, 2)
        for seed in (0, 1)
    ]
    made += [  # other alphas: the first is worse on validation data, the second has one seed alone
        make_result("lora", rate, seed, 400, {"merged": 0.1}, r=4, lora_alpha=alpha)
        for alpha, rate, seeds in ((16, 2e-3, (0, 1)), (32, 1e-4, (0,)))
        for seed in seeds
    ]
    scores = load(made).scores
    (ax,) = rank_figure(scores, "accuracy").axes
    assert series(ax) == {"lora": [pytest.approx((2, 72.5)), pytest.approx((4, 74.5))]}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank r", "accuracy, %")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "4"]
    with pytest.raises(UserError, match="one method at two ranks"):
        rank_figure(scores[scores["rank"] == 4], "accuracy")
    figure = about(rank_figure(scores, "accuracy"), "a task, a model")
    figure.draw_without_rendering()
    (title,), label = figure.texts, figure.axes[0].yaxis.label.get_window_extent()
    assert 0 <= label.y0 < label.y1 < title.get_window_extent().y0


def test_a_panel_for_each_test_set(make_result: Make, load: Load) -> None:
    made = [make_result("lora", 1e-3, 0, 100 * r, {"merged": 0.5}, r=r) for r in (2, 4)]
    for one in made:
        sets = {name: {"merged": {"accuracy": value}} for name, value in (("boolq", 0.6), ("piqa", 0.7), ("siqa", 0.8))}
        one["metric"]["by_test_set"] = sets
    scores = load(made).scores
    axes = rank_figure(scores, "accuracy").axes
    assert [ax.get_title(loc="left") for ax in axes] == ["boolq", "piqa", "siqa", ""]
    assert [series(ax)["lora"][1] for ax in axes[:3]] == [pytest.approx((4, value)) for value in (60, 70, 80)]
    assert [ax.axison for ax in axes] == [True, True, True, False]
    assert [ax.get_xlabel() for ax in axes[1:3]] == ["rank r", "rank r"]  # the last one of each column
    (ax,) = score_figure(scores, "accuracy").axes
    assert ax.containers[0].lines[0].get_xdata().tolist() == [50]  # the mean over them


def test_learning_curves(results: list[Result], load: Load) -> None:
    for one in results:
        one["metric"]["name"] = "clip_i"  # measured in the end only
        if one["method"] == "aurora":
            one["metric"]["selected_by"]["value"] = 0.9
    figure = curves_figure(load(results).scores)
    loss, score = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation accuracy, %"]
    assert score.get_xlabel() == "epoch"
    assert loss.lines[0].get_label() == "aurora (calibrated)"  # the best one first
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([1.1, 0.6, 13 / 30])  # the mean of 1.0, 1.1, 1.2 first
    assert score.lines[0].get_ydata().tolist() == pytest.approx([65, 70, 75])
    band = loss.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1 / 3, 1.2))
    of_scores = score.collections[0].get_paths()[0].vertices[:, 1]
    assert 60 < of_scores.min() <= 65  # in per cent, as the line
    for one in results:
        one["epochs"] = one["epochs"][:2]
    with pytest.raises(UserError, match="evaluated at least 3 times"):
        curves_figure(load(results).scores)


def test_a_method_has_one_colour() -> None:
    assert len({colour(name) for name in ("lora", "LoRA r=8", "lora: r 2", "LoRA")}) == 1
    for name in METHODS:
        assert colour(name) != GREY, name
        assert style(3, name)["color"] == style(0, name)["color"] == colour(name)
    assert colour("full fine-tuning") == colour("full")
    assert colour("linear probe") == colour("linear-probe") == colour("frozen base")
    assert colour("AuroRA paper r=2 (static)") == colour("aurora-paper", STATIC) == FORM_STYLES[STATIC]["color"]
    assert colour("ours") == GREY
    assert len({colour(name) for name in ("aurora", "lora", "dora", "moslora", "pissa", "bitfit", "vera", "full")}) == 8


# ---------------------------------------------------------------- score against learning rate

RATE, HEAD = "training.learning_rate", "training.head_learning_rate"
Trials = list[tuple[dict[str, float], float | None]]


def tried(**settings: Trials) -> tuple[dict[str, Any], pd.DataFrame]:
    """A study.json and a table of settings; of a name such as `lora_r2` the line and the rank."""
    summary, rows = [], []
    for name, trials in settings.items():
        line, _, rank = name.partition("_r")
        shown = [{"values": values, "validation": score} for values, score in trials]
        summary.append({"name": name, "chosen": trials[0][0], "trials": shown})
        rows.append({"setting": name, "line": line, "rank": float(rank or "nan"), "method": "lora", "deployed": "m"})
    return {"settings": summary}, pd.DataFrame(rows)


def points(ax: Any) -> list[list[Any]]:
    """Of the lines of a panel that have marks."""
    return [
        [tuple(point) for point in line.get_xydata().tolist()]
        for line in ax.lines
        if line.get_marker() in ("o", "s", "^") and line.get_linestyle() == "None" and line.get_markersize() < 9
    ]


def rings(ax: Any) -> list[list[float]]:
    return [line.get_xydata().tolist()[0] for line in ax.lines if line.get_markersize() == 9]


def crosses(ax: Any) -> list[float]:
    return [x for line in ax.lines if line.get_marker() == "x" for x in line.get_xdata()]


def test_a_panel_for_each_method_with_its_ranks() -> None:
    summary, scores = tried(
        lora_r2=[({RATE: 1e-2}, 0.8), ({RATE: 1e-3}, 0.7)],
        lora_r8=[({RATE: 1e-3}, 0.9), ({RATE: 1e-2}, 0.75)],
        bitfit=[({RATE: 1e-3}, 0.6), ({RATE: 1e-2}, 0.65)],
        probe=[({RATE: 1e-3}, 0.6)],  # one rate: nothing to draw
    )
    figure = rates_figure(summary, scores, "accuracy")
    lora, bitfit = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["lora", "bitfit"]
    assert points(lora) == [
        [pytest.approx((1e-3, 70)), pytest.approx((1e-2, 80))],
        [pytest.approx((1e-3, 90)), pytest.approx((1e-2, 75))],
    ]
    assert rings(lora) == [pytest.approx([1e-2, 80]), pytest.approx([1e-3, 90])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["r=2", "r=8"]
    assert points(bitfit) == [[pytest.approx((1e-3, 60)), pytest.approx((1e-2, 65))]]
    assert lora.get_ylim() == bitfit.get_ylim()
    assert lora.get_xlim() == bitfit.get_xlim()
    assert figure.get_supylabel() == "validation accuracy, %"


def test_another_kind_of_rate_has_no_place_on_the_axis() -> None:
    """It would stretch it far beyond the others', as a head's score does the other one."""
    both = {"probe": [({HEAD: 1e-1}, 0.3), ({HEAD: 1.0}, 0.2)], "lora": [({RATE: 1e-3}, 0.7), ({RATE: 1e-2}, 0.6)]}
    summary, scores = tried(**both)
    (lora,) = rates_figure(summary, scores, "accuracy").axes
    assert points(lora) == [[pytest.approx((1e-3, 70)), pytest.approx((1e-2, 60))]]
    (probe,) = rates_figure(summary, scores[:1], "accuracy").axes  # alone it is what the study is of
    assert points(probe) == [[pytest.approx((1e-1, 30)), pytest.approx((1.0, 20))]]


def test_a_score_far_behind_or_none_is_a_cross_on_the_edge() -> None:
    good: Trials = [({RATE: 1e-3}, 0.7), ({RATE: 1e-2}, 0.6)]
    lora = rates_figure(*tried(lora=[*good, ({RATE: 3e-2}, -2.0), ({RATE: 1e-1}, None)], bitfit=good), "captured").axes[
        0
    ]
    assert crosses(lora) == [3e-2, 1e-1]
    assert points(lora) == [[pytest.approx((1e-3, 70)), pytest.approx((1e-2, 60))]]
    assert lora.get_ylim()[0] > -100
    worse: Trials = [({RATE: 1e-3}, 0.4), ({RATE: 1e-2}, 0.5), ({RATE: 1e-1}, 90.0)]
    lora = rates_figure(*tried(lora=worse, bitfit=worse[:2]), "nll").axes[0]  # less is better
    assert crosses(lora) == [1e-1]
    assert lora.get_ylim()[1] < 2


def test_of_two_tuned_fields_the_best_at_each_rate() -> None:
    grid = [(1e-3, 0.1, 0.8), (1e-2, 0.1, 0.6), (1e-3, 0.2, 0.7), (1e-2, 0.2, 0.5)]
    study = tried(lora=[({RATE: r, HEAD: h}, score) for r, h, score in grid])
    for metric, low, high in (("accuracy", 80, 60), ("nll", 0.7, 0.5)):
        (lora,) = rates_figure(*study, metric).axes
        assert points(lora) == [[pytest.approx((1e-3, low)), pytest.approx((1e-2, high))]]
