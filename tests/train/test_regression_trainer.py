"""Runs that learn numbers of any size: what is saved gives label units, wherever it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import own_files
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aurora_lora.train import TrainedRun, load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.predicting import predict
from aurora_lora.train.recipe import validate
from aurora_lora.train.run import make_trainer

SCALES = [(0, 1), (1000, 1), (300_000, 50_000)]
TEXTS = ["the film was good", "a very dull plot", "fine"]
MakeRecipe = Callable[..., Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save_model(folder / "bert", dropout=0.1)
    tiny.save_language_model(folder / "causal")
    return folder


@pytest.fixture(scope="module")
def recipe(models: Path) -> MakeRecipe:
    """A recipe whose labels are `shift` and `scale` times how good a text is."""

    def make(shift: float, scale: float, model: str = "bert", **changes: Any) -> Any:
        data = models / f"{shift}-{scale}.jsonl"
        rows = [{"text": text, "label": shift + scale * score} for text, score in own_files._texts()]
        own_files._jsonl(data, rows)
        training = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "threads": 1, **changes.pop("training", {})}
        values = tiny.recipe(
            models / model,
            task={"name": "regression", "data": str(data)},
            method=changes.pop("method", {"name": "aurora", "target_modules": "all-linear"}),
            training=training,
            calibration={"examples": 16, "batch_size": 8},
            **changes,
        )
        return validate(values, "recipe")

    return make


@pytest.fixture(scope="module")
def runs(recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], TrainedRun]:
    """The same run for labels in three units."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        return {units: train(recipe(*units), folder / str(units[0])) for units in SCALES}


def values(folder: Path) -> torch.Tensor:
    return torch.tensor([answer["value"] for answer in predict(folder, TEXTS)], dtype=torch.float64)


def check_scores(run: TrainedRun, tolerance: float = 1e-4) -> None:
    """A finished run, whose head gives label units, has the scores that it had while it was standardised."""
    for form, scores in evaluate(run, forms=run.forms).items():
        assert scores == pytest.approx(run.result["metric"]["by_form"][form], rel=tolerance)


def test_units_do_not_matter(runs: dict[tuple[int, int], TrainedRun]) -> None:
    """Predictions, and all scores on the way, are those of the plain labels, in their own units."""
    plain = runs[0, 1]
    for (shift, scale), run in runs.items():
        expected = shift + scale * values(plain.folder)
        torch.testing.assert_close(values(run.folder), expected, rtol=0, atol=1e-2 * scale)
        mine, its = run.result, plain.result
        pairs = [
            (one["validation"], other["validation"]) for one, other in zip(mine["epochs"], its["epochs"], strict=True)
        ]
        forms = [(mine["metric"][key], its["metric"][key]) for key in ("by_form", "validation_by_form")]
        pairs += [(one[form], other[form]) for one, other in forms for form in one]
        for one, other in pairs:
            assert one["pearson"] == pytest.approx(other["pearson"], abs=1e-3)
            assert one["mse"] / scale**2 == pytest.approx(other["mse"], rel=1e-2)
        assert mine["metric"]["selected_by"]["epoch"] == its["metric"]["selected_by"]["epoch"]


def test_plain_loads_give_label_units(runs: dict[tuple[int, int], TrainedRun], models: Path, tmp_path: Path) -> None:
    """The plain LoRA in PEFT, and the merged model in Transformers."""
    run = runs[300_000, 50_000]
    expected = values(run.folder)
    assert (expected > 50_000).all()
    batch = AutoTokenizer.from_pretrained(run.folder / "adapter")(TEXTS, padding=True, return_tensors="pt")
    base = AutoModelForSequenceClassification.from_pretrained(models / "bert", num_labels=1)
    merge(load_run(run.folder), tmp_path / "merged")
    for plain in (
        PeftModel.from_pretrained(base, run.folder / "lora"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged"),
    ):
        with torch.no_grad():
            found = plain.eval()(**batch).logits[:, 0].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(values(tmp_path / "merged"), expected, rtol=1e-5, atol=0)


def test_half_precision(recipe: MakeRecipe, tmp_path: Path) -> None:
    """In bfloat16, whose numbers next to 2000 are 8 apart, the scores are those of float32."""
    run = train(recipe(2000, 1, training={"precision": "bf16", "learning_rate": 2e-3}), tmp_path / "run")
    head = load_file(run.folder / "adapter/adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert head.dtype == torch.float32
    trained = load_run(run.folder)
    scores = run.result["metric"]["by_form"]
    check_scores(trained, 0.02)
    for form, exact in evaluate(trained.in_precision("fp32"), forms=trained.forms).items():
        assert scores[form]["mse"] == pytest.approx(exact["mse"], rel=0.1)
    assert (values(run.folder) - 2000).abs().max() < 5


def test_a_head_without_a_bias(recipe: MakeRecipe, tmp_path: Path) -> None:
    """It cannot hold the mean: the labels are divided, by the root of their mean square."""
    wanted = recipe(300_000, 50_000, model="causal", training={"epochs": 2})
    _, data = make_trainer(wanted, tmp_path / "checkpoints")
    labels = torch.tensor(data.fixed("train").targets(), dtype=torch.float64)
    assert data.scale is not None
    mean, deviation = data.scale
    assert mean == 0
    assert deviation > 100_000
    assert labels.square().mean().sqrt().item() == pytest.approx(1)
    run = train(wanted, tmp_path / "run")
    assert run.result["data"]["labels"]["trained"] == "divided by their root mean square"
    trained = load_run(run.folder)
    check_scores(trained)
    assert values(run.folder).abs().max() > 10_000
