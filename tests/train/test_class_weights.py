"""`training.class_weights=balanced`: an example counts by how rare its class is."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import own_files
import own_runs
import pytest
import torch

from aurora_lora.train import load_recipe
from aurora_lora.train.run import make_trainer

RARE = 6


def uneven(here: Path) -> None:
    """Leave few rows of one class."""
    first, *lines = (here / "reviews.csv").read_text().splitlines()
    rare = [line for line in lines if line.endswith("negative")][:RARE]
    (here / "reviews.csv").write_text("\n".join([first, *rare, *(x for x in lines if x.endswith("positive"))]) + "\n")


@pytest.mark.parametrize("kind", ["classification", "images"])
def test_the_loss_is_the_weighted_mean(here: Path, kind: str) -> None:
    uneven(here)
    model = "vit" if kind == "images" else "bert"
    given = [f"model={model}", *own_files.OVERRIDES[kind], "training.class_weights=balanced"]
    trainer, data = make_trainer(load_recipe(kind, given), here / "checkpoints")
    labels = cast(Any, data.fixed("train")).targets()
    counts = Counter(labels)
    batch = data.collate([data.splits["train"][place] for place in range(12)])
    device = next(cast(Any, trainer.model).parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    cast(Any, trainer.model).eval()
    loss, outputs = cast(Any, trainer.compute_loss(cast(Any, trainer.model), dict(batch), return_outputs=True))
    by_hand = [
        -math.log(row.softmax(-1)[label].item()) * len(labels) / (len(counts) * counts[label])
        for row, label in zip(outputs.logits, batch["labels"].tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 12, rel=1e-5)
    weights = cast(Any, trainer).weights[torch.tensor(labels)]
    assert weights.mean().item() == pytest.approx(1)
    assert len(set(weights.tolist())) > 1


@pytest.mark.slow
def test_accumulated_steps_learn_the_same(here: Path) -> None:
    uneven(here)
    found = []
    for name, more in {"plain": [], "whole": [8, 1], "parts": [4, 2]}.items():
        steps = [f"training.batch_size={more[0]}", f"training.gradient_accumulation_steps={more[1]}"] if more else []
        weights = [*steps, "training.class_weights=balanced"] if more else []
        done = own_runs.train("classification", name, "training.warmup_ratio=0", *weights)
        assert done.exit_code == 0, done.output
        found.append([*json.loads((here / name / "result.json").read_text())["losses"].values()])
    plain, whole, parts = found
    assert parts == pytest.approx(whole, rel=1e-4)
    assert plain != pytest.approx(whole, rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "named"),
    [("regression", "regression"), ("multi-label", "multi-label"), ("choices", "multiple-choice")],
)
def test_what_is_no_classification_is_refused(here: Path, kind: str, named: str) -> None:
    done = own_runs.train(kind, "run", "training.class_weights=balanced")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"training.class_weights: 'balanced' is for classification alone, not {named}" in done.stderr
