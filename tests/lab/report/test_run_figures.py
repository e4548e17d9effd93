"""Figures of a set of runs: the series that are drawn, their labels and units."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.forms import STATIC
from aurora_lora.lab.report.figures import FORM_STYLES, GREY, about, colour, new_figure, save, style
from aurora_lora.lab.report.run_figures import curves_figure, rank_figure, score_figure
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
        one["metric"] |= {"by_test_set": sets, "examples": dict.fromkeys(sets, 10)}
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
        for scores in one["metric"]["by_form"].values():
            scores["clip_i"] = 0.5
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


def test_a_saved_svg_has_letters_lines_and_marks_in_any_viewer(tmp_path: Path) -> None:
    """Plain ones have no fonts, draw no line without an opacity, and a glyph that is empty as the one before it."""
    figure, [ax] = new_figure(1, 3, 2)
    ax.plot([0, 1], [0, 1], "o-", color=GREY, markerfacecolor="white")
    ax.plot([0, 1], [1, 0], color=GREY, alpha=0.5)
    ax.set_title("a b")
    save(figure, tmp_path / "lines")
    svg = (tmp_path / "lines.svg").read_text()
    assert "<text" not in svg
    assert svg.count("<use") >= 2 + len("ab")
    empty = re.findall(r'<path id="([^"]+)" transform=[^>]*/>', svg)
    assert len(empty) == 1
    assert f'"#{empty[0]}"' not in svg
    styles = [style for style in re.findall(r'style="([^"]*)"', svg) if "stroke: #" in style]
    assert len(styles) > 4
    assert all("stroke-opacity: " in style for style in styles)
    assert any(style.rpartition("stroke-opacity: ")[2].startswith("0.5") for style in styles)
