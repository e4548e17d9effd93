"""What is said of runs that still learn in their last epoch, and of those that do not."""

from collections.abc import Callable
from typing import Any

import pytest

from aurora_lora.lab.report.groups import Group
from aurora_lora.lab.report.study import convergence_note

Curves = Callable[..., Group]


@pytest.fixture
def group(make_result: Callable[..., dict[str, Any]]) -> Curves:
    def make(*curves: list[float | None], metric: str = "accuracy", every: float = 1.0) -> Group:
        runs = []
        for seed, scores in enumerate(curves):
            run = make_result("lora", 1e-3, seed, 100, {"merged": 0.5})
            run["metric"]["selected_by"]["name"] = metric
            run["epochs"] = [
                {"epoch": every * (place + 1), "validation": {metric: score}} for place, score in enumerate(scores)
            ]
            runs.append(run)
        return Group("LoRA", runs)

    return make


def test_runs_that_still_gain_are_counted(group: Curves) -> None:
    rising = group([0.5, 0.70], [0.69, 0.71], [0.60, 0.72])  # spread 0.01; gains 0.20, 0.02, 0.12
    flat = group([0.700, 0.705], [0.80, 0.81])  # spread 0.07
    note = convergence_note([rising, flat])
    assert note.startswith("Not converged: 3 of 5 final runs still gain more in the last epoch than")
    assert "The median gain is 2.0 points of accuracy, the spread 1.0" in note
    assert convergence_note([flat]).startswith("Converged: none of 2 final runs still gains more")


def test_of_a_loss_less_is_a_gain_and_a_gain_is_per_epoch(group: Curves) -> None:
    losses = [0.50, 0.46], [0.49, 0.43]  # spread 0.021; gains 0.04 and 0.06
    assert "Not converged: 2 of 2" in convergence_note([group(*losses, metric="nll")])
    assert "Converged: none of 2" in convergence_note([group(*losses)])  # of accuracy it is a loss
    assert "Not converged: 1 of 2" in convergence_note([group(*losses, metric="nll", every=2)])


def test_of_several_evaluations_an_epoch_the_gain_is_that_of_the_epoch(group: Curves) -> None:
    """That between two of them, times their number, would be their noise as well."""
    flat = [0.70, 0.70, 0.70, 0.70, 0.71], [0.70, 0.73, 0.74, 0.73, 0.72]  # spread 0.007; times four: 0.04 and -0.04
    note = convergence_note([group(*flat, every=0.25)])
    assert note.startswith("Not converged: 2 of 2")
    assert "The median gain is 1.5 points of accuracy" in note  # 0.01 and 0.02
    uneven = [0.60, 0.61, 0.62, 0.70], [0.60, 0.61, 0.62, 0.74]  # epochs 0.4 to 1.6: 0.10 and 0.14 since 0.4
    assert "The median gain is 10.0 points" in convergence_note([group(*uneven, every=0.4)])
    steps = [0.5, 0.6], [0.5, 0.7]
    assert "The median gain is 15.0 points" in convergence_note([group(*steps, every=0.999)])
    assert convergence_note([group(*flat, every=0.2)]).startswith("Whether the runs have converged is not known")


def test_what_is_not_known(group: Curves) -> None:
    for one in (group([0.5, 0.6]), group([0.5], [0.6]), group([0.5, None], [None, 0.6]), group([], [])):
        assert convergence_note([one]).startswith("Whether the runs have converged is not known")
