"""What a training command has: schedules, early stopping, loggers, a quantised base, its dtype and its attention."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from aurora_lora.train import TrainedRun, load_recipe, load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.kinds import KINDS
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.predicting import predict
from aurora_lora.train.recipe import epochs_of, steps_of

WriteRecipe = Callable[..., Path]


class Rates(TrainerCallback):
    """The learning rate of the adapter in each step, and the model that was trained."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.model: Any = None
        self.decays: dict[str, float] = {}
        self.heads: set[float] = set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])
        self.model = kwargs["model"]
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in kwargs["optimizer"].param_groups:
            self.decays |= {names[parameter]: group["weight_decay"] for parameter in group["params"]}
            self.heads |= {group["initial_lr"] for one in group["params"] if "classifier" in names[one]}


def run_with(recipe: Path, folder: Path, *changes: str) -> tuple[TrainedRun, Rates]:
    rates = Rates()
    return train(load_recipe(recipe, changes), folder, make_callbacks=lambda: [rates]), rates


def test_the_head_has_its_rate_and_weights_decay(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """As in Transformers' Trainer matrices decay; biases and norms do not."""
    changes = ["training.weight_decay=0.25", "training.head_learning_rate=1e-3", "training.epochs=1"]
    _, rates = run_with(write_recipe(), tmp_path / "run", "method={name: full}", *changes)
    assert {decay for name, decay in rates.decays.items() if name.endswith("bias") or "Norm" in name} == {0.0}
    assert {d for n, d in rates.decays.items() if n.endswith("weight") and "Norm" not in n} == {0.25}
    assert rates.heads == {1e-3}
    assert max(rates.rates) == pytest.approx(2e-2)


def test_the_schedule(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    schedule = ["training.scheduler=cosine", "training.warmup_ratio=0.25"]
    _, rates = run_with(write_recipe(), tmp_path / "run", *schedule)
    warm, steps = 6, 24
    by_hand = [step / warm for step in range(warm)]
    by_hand += [0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) for step in range(warm, steps)]
    assert rates.rates == pytest.approx([2e-2 * share for share in by_hand])


def test_a_single_step_is_no_warmup(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    single = ["training.epochs=1", "training.batch_size=256"]
    _, rates = run_with(write_recipe(), tmp_path / "run", *single)
    assert rates.rates == pytest.approx([2e-2])


PAPER_IN_HALF = ("method=aurora-paper", "method.target_modules=[query,value]", "training.precision=bf16")


def stand_in(monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float], **others: float) -> None:
    """For the scores of a run's evaluations; the last one for all that follow."""
    kind, left = type(KINDS["classification"]), list(values)
    own = kind.metrics

    def next_score(*args: Any) -> dict[str, float]:
        return {**own(*args), **others, metric: left.pop(0) if len(left) > 1 else left[0]}

    monkeypatch.setattr(kind, "metrics", next_score)


@pytest.mark.parametrize(("interrupted", "more"), [(False, ()), (True, PAPER_IN_HALF)])
def test_early_stopping(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool, more: tuple[str, ...]
) -> None:
    """Also where the calibration is left to a model that nothing was trained of."""
    stand_in(monkeypatch, "accuracy", [0.5, 0.8, 0.7, 0.79, 0.0])
    changes = ["training.epochs=9", "training.patience=2", *more]
    if interrupted:  # after the checkpoint of the last evaluation: there is nothing left to train
        from aurora_lora.train import run

        with monkeypatch.context() as patch:
            patch.setattr(run, "check_finite", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run_with(write_recipe(), tmp_path / "run", *changes)
        done, rates = run_with(write_recipe(), tmp_path / "run", *changes)
        assert not rates.rates
    else:
        done, rates = run_with(write_recipe(), tmp_path / "run", *changes)
        assert len(rates.rates) == 4 * 8
    assert [entry["epoch"] for entry in done.result["epochs"]] == [1, 2, 3, 4]
    assert done.result["metric"]["selected_by"]["epoch"] == 2
    took = done.result["time"]
    assert took["samples_per_s"] * took["train_s"] == pytest.approx(4 * 64, rel=0.02)


def test_of_equal_scores_the_least_loss(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the patience an equal score is none that is better."""
    stand_in(monkeypatch, "nll", [0.5, 0.3, 0.4, 0.2, 0.1, 0.1], accuracy=0.8)
    done, _ = run_with(write_recipe(), tmp_path / "run", "training.epochs=9", "training.patience=3")
    assert [entry["epoch"] for entry in done.result["epochs"]] == [1, 2, 3, 4]
    assert done.result["metric"]["selected_by"]["epoch"] == 4


@pytest.mark.parametrize("interrupted", [False, True])
def test_max_steps(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Whatever the epochs, 8 steps each here; a run that goes on after the last one trains nothing more."""
    changes = ["training.epochs=1", "training.max_steps=11"]
    if interrupted:
        from aurora_lora.train import run

        with monkeypatch.context() as patch:
            patch.setattr(run, "check_finite", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run_with(write_recipe(), tmp_path / "run", *changes)
    done, rates = run_with(write_recipe(), tmp_path / "run", *changes)
    assert len(rates.rates) == (0 if interrupted else 11)
    assert [entry["step"] for entry in done.result["epochs"]] == [8, 11]
    assert done.result["epochs"][-1]["epoch"] == 11 / 8


@pytest.mark.slow
def test_epochs_by_the_number_of_rows(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    said: list[str] = []

    class Bar(TrainerCallback):
        say = staticmethod(said.extend)

    changes = ["training.epochs=null", "training.gradient_accumulation_steps=2"]
    recipe = load_recipe(write_recipe(), changes)
    result = train(recipe, tmp_path / "run", make_callbacks=lambda: [Bar()]).result
    assert " of 50, the best by " in (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert (result["epochs"][-1]["epoch"], result["epochs"][-1]["step"]) == (50, 200)
    assert said == ["epochs: 50, 200 steps of 16 examples (training.epochs=N or max_steps=N takes others)"]
    assert result["recipe"]["training"]["epochs"] is None
    assert [(epochs_of(recipe.training, rows), steps_of(recipe.training, rows)) for rows in (5, 240, 500, 9000)] == [
        (200, 200),
        (14, 210),
        (7, 224),
        (3, 1689),
    ]


class Weights(TrainerCallback):
    """What is trained, at the end of each epoch."""

    def __init__(self) -> None:
        self.by_epoch: list[dict[str, torch.Tensor]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.by_epoch.append({name: value.detach().clone() for name, value in named if value.requires_grad})


@pytest.mark.slow
def test_select_by(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the accuracy never moves, as with a rare class: the likelihood does, and says which epoch is deployed."""
    stand_in(monkeypatch, "nll", [0.5, 0.4, 0.45, 0.3, 0.35, 0.3, 0.1, 9.0], accuracy=0.97)
    seen, changes = Weights(), ["training.epochs=9", "training.patience=2", "training.select_by=nll"]
    recipe = load_recipe(write_recipe(), changes)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", make_callbacks=lambda: [seen, tiny.Stop(4 * 8 + 3)])
    result = train(recipe, tmp_path / "run", make_callbacks=lambda: [seen]).result
    assert [entry["epoch"] for entry in result["epochs"]] == [1, 2, 3, 4, 5, 6]
    chosen = {"split": "validation", "form": "calibrated", "name": "nll", "value": 0.3, "epoch": 4.0}
    assert result["metric"]["selected_by"] == chosen
    assert result["metric"]["name"] == "accuracy"
    deployed = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    trained = {name.replace(".default", ""): value for name, value in seen.by_epoch[3].items()}
    shared = [name for name in deployed if name in trained]
    assert len(shared) >= 8
    assert all(torch.equal(deployed[name], trained[name]) for name in shared)


@pytest.mark.slow
def test_tensorboard(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[float]] = {}

    class SummaryWriter(MagicMock):
        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.setdefault(name, []).append(value)

    stand_in = ModuleType("torch.utils.tensorboard")
    made = MagicMock(side_effect=lambda log_dir: SummaryWriter())
    stand_in.SummaryWriter = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    done, rates = run_with(write_recipe(), tmp_path / "run", "training.report_to=[tensorboard]")
    made.assert_called_with(log_dir=str(tmp_path / "run" / "logs"))
    assert written["train/learning_rate"] == pytest.approx(rates.rates)
    assert written["eval/accuracy"] == [entry["validation"]["accuracy"] for entry in done.result["epochs"]]
    assert evaluate(load_run(done.folder), forms=["calibrated"])  # a finished run reports nothing more
    assert len(written["eval/accuracy"]) == 3
    again = train(load_recipe(write_recipe()), done.folder)  # with or without loggers, it is the same run
    assert again.was_finished


def test_the_attention_of_the_base(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    _, rates = run_with(write_recipe(), tmp_path / "run", "model.attention=eager", "training.epochs=1")
    assert rates.model.config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base(write_recipe: WriteRecipe, tmp_path: Path, quantization: str) -> None:
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    model = tiny.save_model(tmp_path / "model", width=64)
    done, rates = run_with(write_recipe(model=model), tmp_path / "run", f"model.quantization={quantization}")
    kind = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[quantization]
    adapted = [module for name, module in rates.model.named_modules() if name.endswith("query.base_layer")]
    assert adapted
    assert all(isinstance(module, kind) for module in adapted)
    heads = [module for name, module in rates.model.named_modules() if name.endswith("classifier.original_module")]
    assert [type(module) for module in heads] == [torch.nn.Linear]
    assert done.result["recipe"]["model"] == {"name": str(model), "quantization": quantization}
    plain, _ = run_with(write_recipe(model=model), tmp_path / "plain")
    assert done.result["params"] == plain.result["params"]
    run = load_run(done.folder)
    scores = evaluate(run, forms=run.forms)
    reported = done.result["metric"]["by_form"]
    assert scores["calibrated"]["nll"] == pytest.approx(reported["calibrated"]["nll"], rel=1e-4)
    merged = merge(run, tmp_path / "merged").folder
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    # what was trained, on the base that it was trained on
    weights = load_file(merged / "model.safetensors")
    name, layer = next((name, one) for name, one in rates.model.named_modules() if name.endswith("attention.self.key"))
    if quantization == "int8":
        known = layer.state.CB.float() * layer.state.SCB[:, None] / 127
    else:
        rates.model.state_dict()  # unpacked
        known = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    own = load_file(model / "model.safetensors")
    path = name.removeprefix("base_model.model.")
    torch.testing.assert_close(weights[f"{path}.weight"], known.float(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(known.float(), own[f"{path.removeprefix('bert.')}.weight"], atol=1e-4)
    if quantization == "nf4":  # int8 rounds the inputs of a layer, too
        texts = ["a warm film", "a dull and empty story", "it is fine"]
        found = [[one["probability"] for one in predict(folder, texts)] for folder in (run.folder, merged)]
        assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_each_training_is_a_run_of_its_own(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' callback would log the reference into the first one's run of Weights & Biases."""
    begun: list[str] = []
    ended: list[str] = []
    wandb: Any = ModuleType("wandb")

    def init(name: str, **more: Any) -> None:
        begun.append(name)
        wandb.run = SimpleNamespace(name=name, id="1", summary={}, _label=lambda **given: None)

    def finish() -> None:
        ended.append(wandb.run.name)
        wandb.run = None

    wandb.run, wandb.init, wandb.finish, wandb.config, wandb.log = None, init, finish, {}, lambda values: None
    errors: Any = ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = ValueError
    for one in (wandb, ModuleType("wandb.sdk"), ModuleType("wandb.sdk.lib"), errors):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    recipe = write_recipe(reference={"method": "linear-probe"})
    train(load_recipe(recipe, ["training.report_to=[wandb]", "training.epochs=1"]), tmp_path / "run")
    assert begun == ["tiny", "tiny-reference"]
    assert ended == ["tiny", "tiny-reference"]
