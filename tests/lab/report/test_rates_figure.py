"""Score against learning rate: what is drawn of a study's trials."""

from collections.abc import Callable
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.groups import Group
from aurora_lora.lab.report.run_figures import rates_figure

RATE, HEAD = "training.learning_rate", "training.head_learning_rate"
Overlaps = Callable[[list[Any]], list[Any]]
Settings = Callable[..., tuple[dict[str, Any], list[Group]]]


@pytest.fixture
def settings(make_result: Callable[..., dict[str, Any]]) -> Settings:
    def make(**tried: list[tuple[dict[str, float], float | None]]) -> tuple[dict[str, Any], list[Group]]:
        summary, found = [], []
        for name, trials in tried.items():
            line, _, rank = name.partition("_r")
            best = trials[0][0]
            summary.append(
                {"name": name, "chosen": best, "trials": [{"values": v, "validation": score} for v, score in trials]}
            )
            runs = [make_result("lora", 1e-3, 0, 100, {"merged": 0.5}, **({"r": int(rank)} if rank else {}))]
            found.append(Group(name, runs, line))
        return {"settings": summary}, found

    return make


def points(ax: Any) -> list[list[tuple[float, float]]]:
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


def test_a_panel_for_each_method_with_its_ranks(settings: Settings) -> None:
    summary, found = settings(
        lora_r2=[({RATE: 1e-2}, 0.8), ({RATE: 1e-3}, 0.7)],
        lora_r8=[({RATE: 1e-3}, 0.9), ({RATE: 1e-2}, 0.75)],
        bitfit=[({RATE: 1e-3}, 0.6), ({RATE: 1e-2}, 0.65)],
        probe=[({RATE: 1e-3}, 0.6)],  # one rate: nothing to draw
    )
    figure = rates_figure(summary, found, "accuracy")
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


def test_a_rank_looks_alike_in_every_panel(settings: Settings) -> None:
    trials = [({RATE: 1e-2}, 0.8), ({RATE: 1e-3}, 0.7)]
    figure = rates_figure(*settings(lora_r2=trials, lora_r8=trials, other_r8=trials, bitfit=trials), "accuracy")
    lora, other, bitfit = figure.axes
    drawn = [[line.get_marker() for line in ax.lines if line.get_markersize() == 4.5] for ax in (lora, other, bitfit)]
    assert [marks[:2] for marks in drawn] == [["o", "s"], ["s"], ["^"]]
    figure = rates_figure(*settings(lora_r8=trials, other_r8=trials), "accuracy")
    assert not figure.legends  # there is one rank


def test_another_kind_of_rate_has_no_place_on_the_axis(settings: Settings) -> None:
    """It would stretch it far beyond the others', as a head's score does the other one."""
    summary, found = settings(
        probe=[({HEAD: 1e-1}, 0.3), ({HEAD: 1.0}, 0.2)], lora=[({RATE: 1e-3}, 0.7), ({RATE: 1e-2}, 0.6)]
    )
    (lora,) = rates_figure(summary, found, "accuracy").axes
    assert points(lora) == [[pytest.approx((1e-3, 70)), pytest.approx((1e-2, 60))]]
    assert max(x for line in lora.lines for x in line.get_xdata()) == pytest.approx(1e-2)
    (probe,) = rates_figure(summary, found[:1], "accuracy").axes  # alone it is what the study is of
    assert points(probe) == [[pytest.approx((1e-1, 30)), pytest.approx((1.0, 20))]]


def test_a_score_far_behind_or_none_is_a_cross_on_the_edge(settings: Settings) -> None:
    good = [({RATE: 1e-3}, 0.7), ({RATE: 1e-2}, 0.6)]
    summary, found = settings(lora=[*good, ({RATE: 3e-2}, -2.0), ({RATE: 1e-1}, None)], bitfit=good)
    lora = rates_figure(summary, found, "captured").axes[0]
    assert crosses(lora) == [3e-2, 1e-1]
    assert points(lora) == [[pytest.approx((1e-3, 70)), pytest.approx((1e-2, 60))]]
    assert lora.get_ylim()[0] > -100
    worse = [({RATE: 1e-3}, 0.4), ({RATE: 1e-2}, 0.5), ({RATE: 1e-1}, 90.0)]
    summary, found = settings(lora=worse, bitfit=[({RATE: 1e-3}, 0.5), ({RATE: 1e-2}, 0.6)])
    lora = rates_figure(summary, found, "nll").axes[0]  # less is better
    assert crosses(lora) == [1e-1]
    assert lora.get_ylim()[1] < 2


def test_of_two_tuned_fields_the_best_at_each_rate(settings: Settings) -> None:
    summary, found = settings(
        lora=[
            ({RATE: 1e-3, HEAD: 0.1}, 0.8),
            ({RATE: 1e-2, HEAD: 0.1}, 0.6),
            ({RATE: 1e-3, HEAD: 0.2}, 0.7),
            ({RATE: 1e-2, HEAD: 0.2}, 0.5),
        ],
    )
    (lora,) = rates_figure(summary, found, "accuracy").axes
    assert points(lora) == [[pytest.approx((1e-3, 80)), pytest.approx((1e-2, 60))]]


def test_a_study_of_one_rate_has_no_such_figure(settings: Settings) -> None:
    for trials in ([({RATE: 1e-3}, 0.5)], [({"method.r": 2}, 0.5), ({"method.r": 4}, 0.5)]):
        with pytest.raises(UserError, match="tried with two of them"):
            rates_figure(*settings(lora=trials), "accuracy")
    with pytest.raises(UserError, match="a trial with a score"):
        rates_figure(*settings(lora=[({RATE: 1e-3}, None), ({RATE: 1e-2}, None)]), "accuracy")
