"""A whole run on a tiny model: what it writes, what it refuses, and what one can do with it afterwards."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))


from aurora_lora import InputStatistics, calibrate
from aurora_lora.errors import FormError, UserError
from aurora_lora.train import (
    TrainedRun,
    load_recipe,
    load_run,
    recipe_files,
    train,
)
from aurora_lora.train.deploying import merge
from aurora_lora.train.finished_run import chance_of, epochs_from_log, not_better_than
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.predicting import predict
from aurora_lora.train.run import make_trainer

WriteRecipe = Callable[..., Path]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> TrainedRun:
    return load_run(shutil.copytree(finished, tmp_path / "run"))


def test_result(run: TrainedRun) -> None:
    result = json.loads((run.folder / "result.json").read_text())
    assert result == run.result
    listed = "schema, recipe, method, model, task, seed, metric, params, time, memory, epochs"
    more = ["losses", "by_class", "confusion", "versions", "git_commit"]
    more += ["model_commit", "device", "processes", "status", "adapter_sha256", "lora_sha256"]
    assert list(result) == [*listed.split(", "), *more]
    assert result["schema"] == 1
    assert result["method"] == "aurora"
    assert result["recipe"]["training"]["warmup_ratio"] == 0.06
    assert (result["metric"]["name"], result["metric"]["split"]) == ("accuracy", "test")
    assert list(result["metric"]["by_form"]) == ["dynamic", "static", "calibrated"]
    assert set(result["metric"]["by_form"]["calibrated"]) == {"accuracy", "nll"}
    assert [entry["epoch"] for entry in result["epochs"]] == [1, 2, 3]
    assert (result["status"], result["processes"]) == ("finished", 1)
    names = {path.name for path in run.folder.iterdir()}
    assert names - {".lock"} == {"recipe.yaml", "adapter", "lora", "mistakes.json", "result.json", "reference"}


def test_best_epoch_is_chosen_in_the_deployed_form(run: TrainedRun) -> None:
    chosen = run.result["metric"]["selected_by"]
    best = max(run.result["epochs"], key=lambda entry: entry["validation"]["accuracy"])
    assert chosen["form"] == "calibrated"
    assert (chosen["epoch"], chosen["value"]) == (best["epoch"], best["validation"]["accuracy"])
    # the calibration before each evaluation is the one at the end of the run, on the same weights
    assert run.result["metric"]["validation_by_form"]["calibrated"]["accuracy"] == chosen["value"]


def test_calibrated_once_for_each_evaluation(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the ridge of the recipe."""
    done: list[tuple[str, float]] = []

    def counted(where: str) -> None:
        def counting(*args: Any, **kwargs: Any) -> None:
            done.append((where, kwargs["ridge"]))
            calibrate(*args, **kwargs)

        monkeypatch.setattr(importlib.import_module(f"aurora_lora.train.{where}"), "calibrate", counting)

    counted("trainer")
    counted("run")
    recipe = load_recipe(write_recipe(), ["calibration.ridge=0.01", "calibration.statistics=4"])
    run = train(recipe, tmp_path / "run")
    assert {each.leading.shape for each in InputStatistics.load(run.folder / "adapter").kept} == {(16, 4)}
    assert done == [("trainer", 0.01)] * 3  # the best checkpoint has its matrices
    trainer, data = make_trainer(recipe, tmp_path / "nothing", (), run.folder / "adapter")
    stored = {name: value.clone() for name, value in trainer.model.named_buffers() if "aurora_A_cal." in name}
    calibrate(trainer.model, data.calibration_batches(recipe.calibration), ridge=recipe.calibration.ridge)
    again = dict(trainer.model.named_buffers())
    assert len(stored) == 2 * 4  # the matrix of each layer, and the fingerprint of what it belongs to
    assert all(torch.equal(value, again[name]) for name, value in stored.items())
    done.clear()
    paper = write_recipe(method={"name": "aurora-paper", "target_modules": ["query", "value"]})
    train(load_recipe(paper, ["calibration.ridge=0.01"]), tmp_path / "paper")
    assert done == [("run", 0.01)]


def test_parameter_counts(run: TrainedRun) -> None:
    # 2 layers x q and v: A and B (2 x 16 each), H (2 x 2), spline (2 x 8); head: 16 x 2 + 2
    assert run.result["params"]["adapter"] == 4 * (2 * 32 + 4 + 16)
    assert run.result["params"]["head"] == 34
    assert run.reference is not None
    assert run.reference["params"] == {**run.reference["params"], "adapter": 0, "head": 34}
    assert run.reference["params"]["total"] == run.result["params"]["total"] - run.result["params"]["adapter"]


def test_same_recipe_same_weights(run: TrainedRun, tmp_path: Path) -> None:
    again = train(load_recipe(run.folder / "recipe.yaml"), tmp_path / "again")
    for name in ("adapter/adapter_model.safetensors", "reference/adapter/model.safetensors"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    other = train(load_recipe(run.folder / "recipe.yaml", ["seed=1"]), tmp_path / "other")
    assert other.result["epochs"] != run.result["epochs"]


def test_another_recipes_folder(run: TrainedRun, write_recipe: WriteRecipe) -> None:
    other = load_recipe(write_recipe(reference={"method": "linear-probe"}), ["method.r=3", "seed=1"])
    with pytest.raises(UserError) as caught:
        train(other, run.folder)
    assert "they differ in method.r (there 2, here 3), seed (there 0, here 1):" in str(caught.value)


def test_a_run_that_made_nothing_leaves_its_folder_to_the_next(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="cannot be loaded"):
        train(load_recipe(write_recipe(model=str(tmp_path))), folder)  # no model is there
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        train(load_recipe(write_recipe(model=str(tmp_path))), folder)
    assert (folder / "recipe.yaml").exists()  # the folder was there
    run = train(load_recipe(write_recipe()), folder)
    assert recipe_files.read(folder / "recipe.yaml")["model"] == run.result["recipe"]["model"]


def test_the_recipe_says_the_precision_whatever_accelerate_is_set_to(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` gives every process what `accelerate config` was answered."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    again = train(load_recipe(run.folder / "recipe.yaml"), tmp_path / "again")
    name = "adapter/adapter_model.safetensors"
    assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert again.result["metric"] == run.result["metric"]


@pytest.mark.parametrize("change", ["# my notes\n{}"])
def test_a_recipe_of_the_users_own_is_not_replaced(change: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    folder = tmp_path / "run"
    folder.mkdir()
    mine = change.format(recipe_files.dump(recipe.resolved()))
    (folder / "recipe.yaml").write_text(mine)
    with pytest.raises(UserError, match=r"run/recipe\.yaml was not written by a run, which would replace it: choose"):
        train(recipe, folder)
    assert (folder / "recipe.yaml").read_text() == mine


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=/no/such/folder", "model: '/no/such/folder' is no folder"),
        ("training.precision=fp16", "training.precision: 'fp16' needs a GPU"),
        ("training.learning_rate=1e30", "training diverged"),
    ],
)
def test_what_cannot_be_trained(write_recipe: WriteRecipe, tmp_path: Path, override: str, message: str) -> None:
    if "fp16" in override and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError) as caught:
        train(load_recipe(write_recipe(), [override, "training.max_grad_norm=0"]), tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_loss_counts_for_the_steps_that_it_is_of() -> None:
    """It is logged each few steps, and once more before an evaluation."""
    steps = ((3, 4.0), (6, 2.0), (8, 1.0), (9, 5.0), (12, 1.0))
    log: list[dict[str, Any]] = [{"loss": loss, "step": step, "epoch": step / 8} for step, loss in steps]
    log.insert(3, {"eval_nll": 0.5, "step": 8, "epoch": 1.0})
    log.append({"eval_nll": 0.4, "step": 12, "epoch": 1.5})
    losses = [entry["train_loss"] for entry in epochs_from_log(log, ("nll",))]
    assert losses == [(3 * 4 + 3 * 2 + 2 * 1) / 8, (5 + 3 * 1) / 4]


ALWAYS, MEAN = "always the most frequent class", "the training mean"


@pytest.mark.parametrize(
    ("name", "scores", "levels", "said"),
    [
        ("accuracy", {"accuracy": 0.8}, {"chance": 0.5, "most_frequent": 0.8},
         f"{ALWAYS} (accuracy % 80.0)"),
        ("accuracy", {"accuracy": 0.81}, {"chance": 0.5, "most_frequent": 0.8}, None),
        ("accuracy", {"accuracy": 0.5}, {"chance": 0.5}, "uniform guessing (accuracy % 50.0)"),
        ("pearson", {"pearson": 0.1, "mse": 2.0}, {"chance": {"mse": 1.5}},
         f"{MEAN} (mean squared error 1.500)"),
        ("pearson", {"pearson": 0.1, "mse": 1.4}, {"chance": {"mse": 1.5}}, None),
        ("micro_f1", {"micro_f1": 0.0}, {}, "no label at all (micro F1 % 0.0)"),
        ("nll", {"nll": 2.5}, {"before": {"nll": 2.4}}, "the model before the training (neg. log-likelihood 2.400)"),
        ("nll", {"nll": None}, {"before": {"nll": 2.4}}, None),
    ],
)  # fmt: skip
def test_no_better_than_what_takes_no_training(
    name: str, scores: dict[str, Any], levels: dict[str, Any], said: str | None
) -> None:
    metric: dict[str, Any] = {"name": name, "by_form": {"merged": scores}, "selected_by": {"form": "merged"}}
    for level, value in levels.items():
        found = value if isinstance(value, dict) else {name: value}
        metric[level] = found if level == "before" else {"test": found}
    assert not_better_than({"metric": metric}) == said


def test_the_chance_of_several_test_sets_is_their_mean() -> None:
    """Of the metrics that were scored; each set counts the same."""
    levels = {"one": {"accuracy": 0.5, "nll": 0.75}, "other": {"accuracy": 0.25, "nll": 1.5}}
    metric = {"by_form": {"static": {"accuracy": 0.9}}, "chance": levels}
    assert chance_of({"task": "own", "metric": metric}) == {"accuracy": 0.375}


# ---------------------------------------------------------------- afterwards


def test_evaluate_again(run: TrainedRun) -> None:
    again = load_run(run.folder)
    assert evaluate(again, forms=again.forms) == run.result["metric"]["by_form"]
    assert evaluate(again, forms=["static"], split="validation") == {
        "static": run.result["metric"]["validation_by_form"]["static"]
    }
    with pytest.raises(FormError, match="allowed: 'dynamic', 'static', 'calibrated'"):
        evaluate(again, forms=["merged"])
    with pytest.raises(UserError, match="not one of train, validation, test"):
        evaluate(again, forms=["static"], split="dev")
    assert {path.name for path in run.folder.iterdir()} >= {"recipe.yaml", "adapter", "result.json"}


@pytest.mark.parametrize("form", ["calibrated", "static"])
def test_merged_model_is_plain_and_equal(run: TrainedRun, tmp_path: Path, form: str) -> None:
    merged = merge(load_run(run.folder), tmp_path / "merged", form=form)
    plain = AutoModelForSequenceClassification.from_pretrained(merged.folder).eval()
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    assert not any("aurora" in name for name, _ in plain.named_parameters())
    recipe = load_recipe(run.folder / "recipe.yaml")
    trainer, data = make_trainer(recipe, tmp_path / "none", (), run.folder / "adapter")
    batch = data.collate([data.splits["test"][row] for row in range(32)])
    labels = batch.pop("labels")
    with recipe.method.using(trainer.model, form), torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, expected, rtol=0, atol=1e-5)
    assert len(labels) == 32


def test_merge_refuses_what_it_cannot_do(run: TrainedRun, tmp_path: Path) -> None:
    trained = load_run(run.folder)
    with pytest.raises(FormError, match="dynamic"):
        merge(trained, tmp_path / "merged", form="dynamic")
    assert not (tmp_path / "merged").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="something that `aurora merge` did not write"):
            merge(trained, tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(UserError, match="cannot write /proc/merged"):
        merge(trained, "/proc/merged")
    merge(trained, tmp_path / "merged")
    with pytest.raises(UserError, match="a merged model: `overwrite` replaces it"):
        merge(trained, tmp_path / "merged", form="static")
    merge(trained, tmp_path / "merged", form="static", overwrite=True)
    (tmp_path / "merged" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.txt, which `aurora merge` did not write"):
        merge(trained, tmp_path / "merged", overwrite=True)


def test_a_users_own_files_stay_in_the_folder_of_a_run(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mine = [
        folder / name for name in (".thesis.partial", ".old.trash", "checkpoints/best/weights", "updates/.a.partial")
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(write_recipe(), ["training.epochs=1"])
    (folder / "recipe.yaml").write_text(recipe_files.dump(recipe.resolved()))
    for path in mine:
        path.write_text("years of work")
    train(recipe, folder)
    for path in mine:
        assert path.read_text() == "years of work"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["best"]
    assert train(recipe, folder).was_finished
    assert mine[2].exists()


def test_unfinished_and_damaged_runs(run: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not the folder of a run: it has no recipe\.yaml"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither the folder of a run .* nor a model"):
        predict(tmp_path / "none", ["good"])
    weights = run.folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged: it is not what the run wrote"):
        predict(run.folder, ["good"])
    earlier = {name: value for name, value in run.result.items() if name != "adapter_sha256"}
    (run.folder / "result.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="cannot be loaded"):
        predict(run.folder, ["good"])
    for text, why in ((json.dumps({**earlier, "metric": {}}), "is damaged"), ("{", "result.json cannot be read")):
        (run.folder / "result.json").write_text(text)
        with pytest.raises(UserError, match=why):
            load_run(run.folder)
    (run.folder / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_run(run.folder)


def test_the_base_of_a_run_is_not_replaced_by_its_merge(
    run: TrainedRun, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    base = merge(load_run(run.folder), tmp_path / "base").folder
    second = load_run(train(load_recipe(write_recipe(model=base)), tmp_path / "second").folder)
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="was trained on and needs"):
        merge(second, base, overwrite=True)
    assert (base / "model.safetensors").read_bytes() == before
