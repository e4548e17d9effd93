"""`method.from`: a run begins with the weights of an earlier adapter of the same method."""

import json
from pathlib import Path
from typing import Any, cast

import own_files
import own_runs
import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_lora.train import load_recipe, load_run
from aurora_lora.train.run import load_trainer, make_trainer, trained_on


def begun(here: Path, kind: str, *more: str) -> Any:
    """The model that a run would train."""
    model = {"choices": "causal", "images": "vit"}.get(kind, "bert")
    given = [f"model={model}", *own_files.OVERRIDES[kind], *own_runs.SETTINGS, *more]
    return make_trainer(load_recipe(kind, given), here / "checkpoints")[0].model


@pytest.mark.parametrize(
    "kind", ["classification", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("choices", "images"))]
)
def test_a_run_begins_with_the_weights_of_an_earlier_one(here: Path, kind: str) -> None:
    assert own_runs.train(kind, "first").exit_code == 0
    trained: Any = load_trainer(load_run("first"))[0].model
    there = dict(trained.named_parameters())
    for place in ("first", "first/adapter"):
        model = begun(here, kind, f"method.from={place}")
        learned = {name: one for name, one in model.named_parameters() if one.requires_grad}
        assert len(learned) > 4
        assert all(torch.equal(one, there[name]) for name, one in learned.items())
    fresh = begun(here, kind)
    assert not all(torch.equal(one, there[name]) for name, one in fresh.named_parameters() if one.requires_grad)
    done = own_runs.train(kind, "second", "method.from=first")
    assert done.exit_code == 0, done.output
    losses = [json.loads((here / run / "result.json").read_text())["losses"]["1"] for run in ("first", "second")]
    assert losses[0] != losses[1]
    assert "from: first" in (here / "second" / "recipe.yaml").read_text()
    (here / "first").rename(here / "moved")  # what a finished run has gone on from need not stay
    assert own_runs.aurora("report", "second").exit_code == 0
    assert own_runs.aurora("evaluate", "second").exit_code == 0


@pytest.mark.slow
def test_numbers_are_gone_on_from_in_their_own_scale(here: Path) -> None:
    """The head that was saved gives the labels' units; it is trained on standardised ones."""
    assert own_runs.train("regression", "first").exit_code == 0
    trainer, data = load_trainer(load_run("first"))
    batch = data.collate([data.splits["train"][place] for place in range(4)])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    given = ["model=bert", *own_files.OVERRIDES["regression"], *own_runs.SETTINGS, "method.from=first"]
    again, scaled = make_trainer(load_recipe("regression", given), here / "checkpoints")
    assert scaled.scale is not None
    mean, deviation = scaled.scale
    with torch.no_grad():
        there, here_ = (
            cast(Any, one.model).eval()(**{name: value.to(one.args.device) for name, value in inputs.items()}).logits
            for one in (trainer, again)
        )
    assert torch.allclose(here_ * deviation + mean, there, atol=1e-4)


def test_another_adapter_is_refused_in_a_line_that_names_what_differs(here: Path) -> None:
    assert own_runs.train("classification", "first", "method.r=2").exit_code == 0
    lines = (here / "reviews.csv").read_text().replace("positive", "great")
    (here / "others.csv").write_text(lines)
    other = here / "other"
    other.mkdir()
    for path in (here / "first" / "adapter").glob("adapter_*"):
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name][:1]}, other / "adapter_model.safetensors")
    cases = {
        "r (there 2, here 4)": ["method.from=first", "method.r=4"],
        "alpha (there": ["method.from=first", "method.r=2", "method.alpha=3"],
        "method (there 'AURORA', here 'LORA')": ["method.from=first/adapter", "method.name=lora", "method.r=2"],
        "labels (there ('negative', 'positive'), here ('great', 'negative'))": [
            *("method.from=first", "method.r=2", "task.data=others.csv")
        ],
        "nowhere holds no adapter: it has no adapter_config.json": ["method.from=nowhere"],
        "other cannot be gone on from": ["method.from=other", "method.r=2"],
        "from: full is no adapter of PEFT": ["method={name: full, from: first}"],
        "from: 3 is not allowed": ["method.from=3"],
    }
    for said, overrides in cases.items():
        done = own_runs.train("classification", "second", *overrides)
        assert (done.exit_code, done.stderr.strip().count("\n")) == (2, 0), done.output
        assert "method.from: " in done.stderr or "method: from: " in done.stderr, done.stderr
        assert said in done.stderr
        assert not (here / "second").exists()


def test_what_an_earlier_run_has_seen_counts(here: Path) -> None:
    """A model that has learned a test's questions must not be tested."""
    assert own_runs.train("classification", "first").exit_code == 0
    given = ["model=bert", *own_files.OVERRIDES["classification"], "method.from=first"]
    name = "classification of reviews.csv"
    assert trained_on(load_recipe("classification", given)) == [name]
    given[1:-1] = own_files.OVERRIDES["regression"]
    assert trained_on(load_recipe("regression", given)) == [name, "regression of ratings.jsonl"]
