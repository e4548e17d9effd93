"""Which runs belong together."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from aurora_lora.errors import UserError
from aurora_lora.lab.report.groups import Group, by_learning_rate, chosen, groups, half_interval, interval, labels


def test_groups(results: list[dict[str, Any]]) -> None:
    (found,) = groups(results).values()
    assert [group.label for group in found] == ["lora: learning_rate 0.001", "lora: learning_rate 0.002", "aurora"]
    assert [run["seed"] for run in found[0].runs] == [0, 1, 2]
    assert found[0].scores("merged", "accuracy") == pytest.approx([0.8, 0.81, 0.82])
    assert labels(results[:1]) == ["lora"]


def test_interval() -> None:
    values = [0.80, 0.81, 0.82]
    low, high = t.interval(0.95, 2, loc=0.81, scale=0.01 / 3**0.5)
    assert interval(values) == pytest.approx((low, high))
    assert interval([1.0]) == (None, None)
    assert interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    nearly = [0.5 - 0.4, 0.51 - 0.41, 0.52 - 0.42]  # the same but for rounding, of which nothing is said
    assert len(set(nearly)) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval(nearly) == pytest.approx((0.1, 0.1))
    assert half_interval(values) == pytest.approx(high - 0.81) == pytest.approx(0.81 - low)
    assert math.isnan(half_interval([1.0]))


@pytest.mark.parametrize(
    "field",
    [
        {"save_updates": True},
        {"threads": 2},
        {"workers": 4},
        {"checkpoint_every": 10},
        {"eval_batch_size": 8},
        {"report_to": ["tensorboard"]},
    ],
)
def test_what_has_no_say_makes_no_other_setting(make_result: Callable[..., Any], field: dict[str, Any]) -> None:
    other = make_result("aurora", 1e-3, 1, 5000, {"dynamic": 0.8, "calibrated": 0.8})
    one = make_result("aurora", 1e-3, 0, 5000, {"dynamic": 0.8, "calibrated": 0.8})
    other["recipe"]["training"] |= field
    other["recipe"]["task"] = {**other["recipe"]["task"], "samples": 0}
    for result in (one, other):
        for scores in result["metric"]["by_form"].values():
            scores["nll"] = 0.5
    (found,) = groups([one, other]).values()
    assert [group.label for group in found] == ["aurora"]
    assert list(by_learning_rate([one, other])) == [1e-3]


@pytest.mark.parametrize("field", ["train_size", "validation_size", "split_seed"])
def test_runs_on_other_data_are_another_line(make_result: Callable[..., Any], field: str) -> None:
    """The best of one validation split is not to be chosen by its score on another."""
    made = []
    for value in (64, 1000):
        for rate in (1e-3, 2e-3):
            made.append(make_result("lora", rate, 0, 100, {"merged": 0.9}, r=2))
            made[-1]["recipe"]["task"][field] = value
    (found,) = groups(made).values()
    by_line = chosen(found)
    assert list(by_line) == [f"lora: {field} 64", f"lora: {field} 1000"]
    assert [len(several) for several in by_line.values()] == [1, 1]


def test_seeds_with_splits_of_their_own_are_one_setting(make_result: Callable[..., Any]) -> None:
    """As in a study with `split_by_seed`, also where a setting lacks a seed."""
    made = [make_result("aurora", rate, seed, 100, {"calibrated": 0.9}) for rate in (1e-3, 2e-3) for seed in (0, 1)][1:]
    for one in made:
        one["recipe"]["task"]["split_seed"] = one["seed"]
    (found,) = groups(made).values()
    assert [group.label for group in found] == ["aurora: learning_rate 0.001", "aurora: learning_rate 0.002"]
    assert [[run["seed"] for run in group.runs] for group in found] == [[1], [0, 1]]
    assert found[1].runs[1]["recipe"]["task"]["split_seed"] == 1
    assert list(chosen(found)) == ["aurora"]
    for one in made:
        for scores in one["metric"]["by_form"].values():
            scores["nll"] = 0.5
    assert {rate: len(runs) for rate, runs in by_learning_rate(made).items()} == {1e-3: 1, 2e-3: 2}
    made[0]["recipe"]["task"]["split_seed"] = 7
    with pytest.raises(UserError, match=r"differ in more than learning rate and seed, in task\.split_seed"):
        by_learning_rate(made)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("calibration", ({"examples": 16}, {"examples": 256})),
        ("model", ({"name": "m", "quantization": None}, {"name": "m", "quantization": "nf4"})),
        ("prior", (None, {"prompt": "a photo of a dog", "images": 100})),
    ],
)
def test_runs_that_differ_in_their_base_or_calibration_are_told_apart(
    make_result: Callable[..., Any], section: str, values: tuple[Any, Any]
) -> None:
    made = [make_result("aurora", 1e-3, 0, 100, {"calibrated": 0.9}, r=2) for _ in values]
    for one, value in zip(made, values, strict=True):
        one["recipe"][section] = value
    (found,) = groups(made).values()
    assert len({group.label for group in found}) == len(chosen(found)) == 2


def test_the_least_error_is_the_best(make_result: Callable[..., Any]) -> None:
    made = [make_result("lora", rate, 0, 100, {"merged": 0.9}) for rate in (1e-3, 2e-3)]
    for one, error in zip(made, (0.5, 0.4), strict=True):
        one["metric"]["selected_by"] |= {"name": "mse", "value": error}
    (found,) = groups(made).values()
    assert [group.selected_by for group in found] == ["mse", "mse"]
    (best,) = chosen(found)["lora"]
    assert best.runs[0]["recipe"]["training"]["learning_rate"] == 2e-3


def test_a_rate_of_fewer_seeds_is_not_the_best(make_result: Callable[..., Any]) -> None:
    """A tuned rate that was not run over the seeds may be ahead on the one that it was run on."""
    made = [make_result("lora", 1e-3, seed, 100, {"merged": 0.9}, r=2) for seed in (0, 1)]
    made.append(make_result("lora", 2e-3, 0, 100, {"merged": 0.9}, r=2))
    for one, score in zip(made, (0.71, 0.70, 0.72), strict=True):
        one["metric"]["selected_by"]["value"] = score
    for several in (made, made[::-1]):
        (found,) = groups(several).values()
        (best,) = chosen(found)["lora"]
        assert best.runs[0]["recipe"]["training"]["learning_rate"] == 1e-3


def test_ranks_of_a_budget_are_no_rank(make_result: Callable[..., Any]) -> None:
    for options, rank in (({"r": 8}, 8), ({"r": 8, "budget": 4096}, None), ({}, None)):
        assert Group("", [make_result("lora", 1e-3, 0, 100, {"merged": 0.5}, **options)], "").rank == rank


def test_a_line_is_a_method_over_its_ranks_at_the_best_learning_rate(make_result: Callable[..., Any]) -> None:
    made = []
    for r in (8, 2):
        for rate in (2e-3, 1e-3):  # the second is better on validation data
            made.append(make_result("lora", rate, 0, 100 * r, {"merged": 0.9}, r=r, lora_alpha=2 * r))
            made.append(make_result("aurora", rate, 0, 100 * r, {"calibrated": 0.9}, r=r, alpha=2 * r, skip=r == 2))
    (found,) = groups(made).values()
    by_line = chosen(found)
    assert list(by_line) == ["lora", "aurora: skip False", "aurora: skip True"]
    assert [(group.rank, group.runs[0]["recipe"]["training"]["learning_rate"]) for group in by_line["lora"]] == [
        (2, 1e-3),
        (8, 1e-3),
    ]


def test_runs_on_other_contents_of_a_file_are_not_compared(results: list[dict[str, Any]]) -> None:
    runs = [{**run, "data": {"files": {"reviews.csv": "sha256"}}} for run in results[:3:2]]
    assert sum(len(group.runs) for group in next(iter(groups(runs).values()))) == 2
    runs[1]["data"]["files"]["reviews.csv"] = "b"
    with pytest.raises(UserError, match=r"runs on other contents of reviews\.csv are not compared: a and b"):
        groups(runs, [Path("a"), Path("b")])
