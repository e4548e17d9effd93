"""Runs of GLUE tasks on copies of a few rows: what the result reports, and of which split."""

import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import hub_copy

from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.measuring import evaluate

WriteRecipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def _copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "data"))
    hub_copy.write(hub_copy.read("glue.json"), tmp_path / "data")


@pytest.mark.parametrize(("task", "metrics"), [("cola", "matthews accuracy nll"), ("stsb", "pearson spearman mse")])
def test_the_score_is_the_best_epochs_on_validation(
    write_recipe: WriteRecipe, tmp_path: Path, task: str, metrics: str
) -> None:
    result = train(load_recipe(write_recipe(task=task)), tmp_path / "run").result
    metric = result["metric"]
    assert (metric["split"], metric["examples"]["validation"]) == ("validation", 3)
    assert metric["by_form"] == metric["validation_by_form"]
    assert set(metric["by_form"]["calibrated"]) == set(metrics.split())
    assert metric["selected_by"]["name"] == metrics.split()[0]
    assert metric["selected_by"]["value"] == pytest.approx(metric["by_form"]["calibrated"][metrics.split()[0]])


def test_matched_and_mismatched(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    run = train(load_recipe(write_recipe(task="mnli")), tmp_path / "run")
    metric = run.result["metric"]
    assert list(metric["by_test_set"]) == ["matched", "mismatched"]
    assert metric["examples"] == {"train": 3, "validation": 5, "matched": 3, "mismatched": 2}
    for form, scores in metric["by_form"].items():
        parts = [metric["by_test_set"][name][form]["accuracy"] for name in ("matched", "mismatched")]
        assert scores["accuracy"] == pytest.approx(sum(parts) / 2)
    again = load_run(run.folder)
    assert evaluate(again, forms=["static"]) == {"static": metric["by_form"]["static"]}
    assert evaluate(again, forms=["static"], split="matched") == {"static": metric["by_test_set"]["matched"]["static"]}
