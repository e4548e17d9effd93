"""`budget` and `start: aligned` in recipes: what is trained, what is kept, and a run that goes on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_files
import pytest
import tiny
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from aurora_lora.deploy.align import DEVIATION
from aurora_lora.errors import UserError
from aurora_lora.train import load_run, probing, recipe_files, train, trainer
from aurora_lora.train.deploying import merge
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.probing import PROBE, kept_start, read_probe
from aurora_lora.train.recipe import validate
from aurora_lora.train.run import make_trainer
from aurora_lora.train.trainer import own_part

Q_V = {"target_modules": ["query", "value"]}


def load(folder: Path, **changes: Any) -> Any:
    return validate(tiny.recipe(folder, **changes), "recipe")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "aurora", "budget": 500},
        {"name": "lora", "budget": 500, "start": "aligned"},
        {"name": "aurora-paper", "start": "aligned", **Q_V},
        {"name": "lora", "r": 2, "start": "eva", **Q_V},
    ],
    ids=["budget", "both", "start", "eva"],
)
def test_run(model: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    run = train(load(model, method=method), tmp_path / "run")
    again = load_run(run.folder)
    assert evaluate(again, forms=again.forms) == run.result["metric"]["by_form"]
    assert run.result["recipe"]["method"]["probe_examples"] == 48
    saved = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert not {"budget", "start", "probe_examples"} & saved.keys()
    with safe_open(run.folder / PROBE, "pt") as file:
        facts = json.loads(file.metadata()["probe"])
    assert facts["options"]["budget"] == method.get("budget")
    assert facts["batches"] == 6
    size = run.result["recipe"]["task"]["train_size"]
    assert facts["examples"] == [int(size / 48 * i) for i in range(48)]  # spread over the training split
    weights = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    if "budget" in method:
        assert all(name.startswith("bert.") for name in facts["ranks"])  # never the head
        shapes = {name: value.shape for name, value in weights.items() if "_A" in name and "_cal" not in name}
        for layer, rank in facts["ranks"].items():
            assert [shape[0] for name, shape in shapes.items() if f".{layer}." in name] == [rank]
        counted = sum(v.numel() for name, v in weights.items() if name.rpartition("_")[2].startswith(("A.w", "B.w")))
        assert counted <= 500
    merge(again, tmp_path / "merged")


def test_an_aligned_start(model: Path, tmp_path: Path) -> None:
    recipe = load(model, method={"name": "aurora", "start": "aligned", "rank_pattern": {"query": 4}, **Q_V})
    trainer, _ = make_trainer(recipe, tmp_path / "checkpoints")
    start = kept_start(tmp_path)
    assert start is not None
    assert len(start.rows) == 4
    assert start.deviations.keys() == start.spectra.keys() >= start.rows.keys()
    for layer, rows in start.rows.items():
        # each row is the leading direction, of norm 1, times DEVIATION / its deviation
        torch.testing.assert_close(rows.norm(dim=1), DEVIATION / start.deviations[layer][: len(rows)])
        module: Any = trainer.model.get_base_model().get_submodule(layer)  # type: ignore[operator]
        A = module.aurora_A["default"].weight
        assert len(A) == (4 if "query" in layer else 2)
        assert torch.equal(A, rows[: len(A)])  # all of them


def test_eva_is_pefts(model: Path, tmp_path: Path) -> None:
    """Ranks, scaling and A are those that PEFT's `initialize_lora_eva_weights` gives an adapter of the same base."""
    targets = {"target_modules": ["query", "output.dense", "intermediate.dense"]}
    recipe = load(model, method={"name": "lora", "r": 5, "lora_alpha": 15, "start": "eva", **targets})
    trainer, data = make_trainer(recipe, tmp_path / "checkpoints")
    batches = data.training_batches(48 / len(data.splits["train"]), recipe.training.batch_size)
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    config = LoraConfig(r=5, lora_alpha=15, init_lora_weights="eva", eva_config=EvaConfig(), **targets)
    base: Any = AutoModelForSequenceClassification.from_pretrained(model)
    theirs: Any = get_peft_model(base, config)
    initialize_lora_eva_weights(theirs, inputs, show_progress_bar=False)
    expected = {path: layer for path, layer in theirs.named_modules() if isinstance(layer, LoraLayer)}
    found = {path: layer for path, layer in trainer.model.named_modules() if isinstance(layer, LoraLayer)}
    assert found.keys() == expected.keys()
    assert len({layer.r["default"] for layer in found.values()}) > 1  # not just r everywhere
    for path, layer in found.items():
        assert layer.r == expected[path].r
        assert layer.scaling["default"] == pytest.approx(3.0) == expected[path].scaling["default"]
        weight: Any = layer.lora_A["default"].weight
        torch.testing.assert_close(weight, expected[path].lora_A["default"].weight)
        assert not layer.lora_B["default"].weight.any()


def test_eva_refuses_batches_that_are_too_small(model: Path, tmp_path: Path) -> None:
    """PEFT would go round for ever."""
    training = {"epochs": 1, "batch_size": 1, "learning_rate": 1e-3}
    recipe = load(model, method={"name": "lora", "start": "eva", "r": 8, "probe_examples": 1, **Q_V}, training=training)
    with pytest.raises(UserError, match="start: eva needs batches of at least 16 tokens that count"):
        make_trainer(recipe, tmp_path / "checkpoints")


@pytest.mark.slow
def test_killed_and_resumed(aurora: Any, model: Path, tmp_path: Path) -> None:
    """The weights are those of an uninterrupted run, to the last bit, whether it was killed early or late."""
    method = {"name": "aurora", "budget": 500, "start": "aligned"}
    training = {"epochs": 2, "batch_size": 16, "eval_batch_size": 32, "learning_rate": 2e-2, "threads": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_files.dump(tiny.recipe(model, method=method, training=training)), encoding="utf-8")

    def order(name: str, **more: int) -> dict[str, Any]:
        folder = str(tmp_path / name)
        return {"args": ["train", str(path), "-o", folder], "folder": folder, **more}

    (whole,) = aurora(order("whole"))
    assert whole["status"] == 0, whole
    killed = aurora(order("early", kill_at=whole["events"] // 6), order("late", kill_at=2 * whole["events"] // 3))
    assert [answer["status"] for answer in killed] == [-9, -9]
    done = aurora(order("early"), order("late"))
    assert [answer["status"] for answer in done] == [0, 0], done
    for name in ("early", "late"):
        for file in (PROBE, "adapter/adapter_model.safetensors"):
            one, other = (load_file(tmp_path / folder / file) for folder in ("whole", name))
            assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_what_is_trained_whole_is_not_probed(model: Path, tmp_path: Path) -> None:
    method = {"name": "aurora", "budget": 300, "modules_to_save": ["pooler"]}
    run = train(load(model, method=method), tmp_path / "run")
    found = kept_start(run.folder)
    assert found is not None
    assert found.ranks is not None
    assert "bert.pooler.dense" not in (found.spectra.keys() | found.ranks.keys())
    saved = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert "bert.pooler.dense" not in saved["target_modules"]
    assert "pooler" in saved["modules_to_save"]


def test_what_is_probed_and_how(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process its share of the examples, with the recipe's seed and checkpoints of activations."""
    seen: list[tuple[list[Any], int, bool]] = []
    original = probing.probe

    def watched(base: Any, batches: list[Any], *args: Any, **kwargs: Any) -> Any:
        seen.append((batches, kwargs["seed"], base.is_gradient_checkpointing))
        return original(base, batches, *args, **kwargs)

    def of_the_second(work: list[Any]) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "state", lambda: SimpleNamespace(process_index=1, num_processes=2))
            return own_part(work)

    monkeypatch.setattr(probing, "probe", watched)
    training = {"epochs": 1, "batch_size": 8, "gradient_checkpointing": True, "threads": 1}
    recipe = load(model, method={"name": "aurora", "start": "aligned", **Q_V}, training=training, seed=7)
    make_trainer(recipe, tmp_path / "alone" / "checkpoints")
    monkeypatch.setattr(probing, "own_part", of_the_second)
    make_trainer(recipe, tmp_path / "second" / "checkpoints")
    (every, *alone), (share, *second) = seen
    assert alone == second == [7, True]
    assert len(share) == len(every) // 2
    for mine, expected in zip(share, every[1::2], strict=True):
        assert torch.equal(mine["input_ids"], expected["input_ids"])


def test_a_probe_of_other_data_is_not_taken(model: Path, tmp_path: Path) -> None:
    """Of a run that ended before its first checkpoint, as where the data were corrected then."""
    own_files.write_texts(tmp_path)
    task = {"name": "classification", "data": str(tmp_path / "reviews.csv"), "text": "review", "label": "stars"}
    recipe = load(model, method={"name": "aurora", "budget": 300}, task=task)
    kept = tmp_path / "run" / PROBE
    found = []
    for step in ("new", "as it was", "corrected"):
        if step == "corrected":
            lines = (tmp_path / "reviews.csv").read_text().splitlines()
            (tmp_path / "reviews.csv").write_text("\n".join(lines[:-10]) + "\n")
        make_trainer(recipe, tmp_path / "run" / "checkpoints")
        found.append((kept.stat().st_mtime_ns, read_probe(kept)[1]["made_of"]))
    assert found[0] == found[1]
    assert found[2][1]["files"] != found[0][1]["files"]
    (tmp_path / "run" / "adapter").mkdir()  # a run that has made something goes on with what it began with
    (tmp_path / "reviews.csv").write_text("\n".join(lines[:-12]) + "\n")
    make_trainer(recipe, tmp_path / "run" / "checkpoints")
    assert kept.stat().st_mtime_ns == found[2][0]
