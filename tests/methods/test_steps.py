"""What methods do before the training and at its steps: AdaLoRA's ranks, DyLoRA's ranks, LoRA-drop's layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aurora_lora.methods import METHODS, Method, Sample, count_parameters, lora_drop
from aurora_lora.methods.adalora import orthogonality
from aurora_lora.methods.lora_drop import kind_of, layers_by_path, unimportant, update_norms
from aurora_lora.methods.updates import DrawRank

MakeModel = Callable[[str], Any]
ARGS = SimpleNamespace(seed=0)


def applied(make_model: MakeModel, name: str, **options: Any) -> tuple[Any, Method]:
    method = METHODS[name].bind({"target_modules": ["query", "value"], **options})
    return method.apply(make_model("bert"), "SEQ_CLS"), method


# ---------------------------------------------------------------- AdaLoRA


def kept_ranks(model: nn.Module) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if ".lora_E." in name]


def test_adalora_ends_at_its_budget(make_model: MakeModel, fit: Callable[..., None]) -> None:
    """6 matrices of rank 6 share 6 x 2 ranks in the end, and keep them through the last steps."""
    model, method = applied(make_model, "adalora", init_r=6, target_r=2, tinit=2, tfinal=4)
    fit(method, model, steps=16)
    ranks = kept_ranks(model)
    assert sum(ranks) == 6 * 2
    assert max(ranks) > min(ranks)  # shared out by importance, not evenly
    assert model.peft_config["default"].total_step == 16
    assert model.peft_config["default"].rank_pattern is None


def test_adalora_penalty_is_pefts(make_model: MakeModel) -> None:
    """The gradient that the callback adds is that of what PEFT adds to a model's own loss."""
    model, method = applied(make_model, "adalora", init_r=6, target_r=2)
    batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
    trained = [(n, p) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
    tuner = model.base_model
    own = type(tuner).forward(tuner, **batch).loss - model(**batch).loss  # the penalty alone
    torch.testing.assert_close(own, 0.5 * orthogonality(trained), rtol=1e-4, atol=1e-6)
    expected = torch.autograd.grad(0.5 * orthogonality(trained), [p for _, p in trained])
    for _, p in trained:
        p.grad = torch.ones_like(p)
    method.callbacks()[0].on_pre_optimizer_step(ARGS, None, None, model=model)
    for (_, p), gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(p.grad, 1 + gradient)


def test_adalora_state(make_model: MakeModel, fit: Callable[..., None], tmp_path: Path) -> None:
    """The importances and the ranks come back from a checkpoint."""
    model, method = applied(make_model, "adalora", init_r=6, target_r=2, tfinal=3)
    callback = method.callbacks()[0]
    fit(SimpleNamespace(prepare=lambda *_: None, callbacks=lambda: (callback,)), model, steps=6)
    callback.save_state(tmp_path)
    again, _ = applied(make_model, "adalora", init_r=6, target_r=2, tfinal=3)
    restored = method.callbacks()[0]
    restored.load_state(tmp_path)
    restored.on_train_begin(ARGS, SimpleNamespace(max_steps=6), None, model=again)
    assert restored.pattern == callback.pattern
    for kind in ("exp_avg_ipt", "exp_avg_unc"):
        there, here = (getattr(m.base_model.rankallocator, kind) for m in (model, again))
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there)


# ---------------------------------------------------------------- DyLoRA


def draws(callback: DrawRank, model: nn.Module, steps: range, seed: int = 0) -> list[int]:
    found = []
    for step in steps:
        callback.on_step_begin(SimpleNamespace(seed=seed), SimpleNamespace(global_step=step), None, model=model)
        (rank,) = {layer.update.training_rank for layer in layers_by_path(model).values()}
        found.append(rank)
    return found


def test_dylora_draws_each_rank(make_model: MakeModel) -> None:
    model, method = applied(make_model, "dylora", r=5, min_rank=2)
    callback = method.callbacks()[0]
    ranks = draws(callback, model, range(400))
    assert set(ranks) == {2, 3, 4, 5}
    assert min(ranks.count(rank) for rank in (2, 3, 4, 5)) > 70  # 100 expected of each
    # a run that goes on draws what it would have drawn
    assert draws(method.callbacks()[0], model, range(200, 220)) == ranks[200:220]
    assert draws(callback, model, range(20), seed=1) != ranks[:20]


@pytest.mark.parametrize("frozen", [False, True])
def test_dylora_trains_the_drawn_ranks(make_model: MakeModel, frozen: bool) -> None:
    model, _ = applied(make_model, "dylora", r=4, alpha=8, frozen=frozen)
    update = next(iter(layers_by_path(model).values())).update
    nn.init.normal_(update.B)
    update.train()
    update.training_rank = 3
    x = torch.randn(5, 16)
    out = update(x)
    torch.testing.assert_close(out, 8 / 3 * x @ update.A[:3].T @ update.B[:, :3].T)
    out.sum().backward()
    moved = [2] if frozen else [0, 1, 2]
    assert update.A.grad.abs().sum(1).nonzero().flatten().tolist() == moved
    assert update.B.grad.abs().sum(0).nonzero().flatten().tolist() == moved


# ---------------------------------------------------------------- LoRA-drop


def test_which_layers_are_unimportant() -> None:
    """Of each kind, the most important until they make up the threshold, with the one that reaches it."""
    kind = {"a": ("q", 1, 1), "b": ("q", 1, 1), "c": ("q", 1, 1), "d": ("v", 1, 1), "e": ("v", 1, 1)}
    norms = {"a": 1.0, "b": 6.0, "c": 3.0, "d": 100.0, "e": 900.0}
    assert unimportant(norms, kind, 0.9) == ["a", "d"]
    assert unimportant(norms, kind, 0.5) == ["c", "a", "d"]
    assert unimportant(norms, kind, 1.0) == []
    assert unimportant(dict.fromkeys(kind, 0.0), kind, 0.9) == []  # nothing was learned: nothing can be told


def test_lora_drop_shares_and_starts_anew(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    model, method = applied(make_model, "lora-drop", r=4, threshold=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    method.prepare(model, sample)
    layers = layers_by_path(model)
    dropped = [path for path in layers if layers[path].update is None or hasattr(layers[path].update, "is_shared")]
    assert 0 < len(dropped) < len(layers)
    for kind in {kind_of(path, layer) for path, layer in layers.items()}:
        users = [layers[path].in_use for path in dropped if kind_of(path, layers[path]) == kind]
        assert len({id(update) for update in users}) <= 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, start.get(name, torch.tensor(True)))
    # one adapter for those that were dropped, of each kind
    own = len(layers) - len(dropped) + len({kind_of(path, layers[path]) for path in dropped})
    assert count_parameters(model).adapter == own * 4 * (16 + 16)
    # the layers are known again from the weights
    method.save(model, tmp_path)
    loaded = method.load(make_model("bert"), tmp_path)
    assert {p for p, one in layers_by_path(loaded).items() if one.update is None} == {
        p for p, one in layers.items() if one.update is None
    }


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value[part] for key, value in batch.items()} for part in (slice(0, 8), slice(8, 16))]


def test_lora_drop_judges_layers_after_ordinary_training(
    make_model: MakeModel, sample: Sample, labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has each step's gradient by itself, from torch.autograd.grad."""
    found: dict[str, float] = {}
    monkeypatch.setattr(lora_drop, "unimportant", lambda norms, *_: found.update(norms) or [])
    seen = replace(sample, batches=lambda share: halves(labelled))
    model, method = applied(make_model, "lora-drop", r=4, sample_epochs=3)
    method.prepare(model, seen)
    other, _ = applied(make_model, "lora-drop", r=4)
    trained = [parameter for parameter in other.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=sample.learning_rate, weight_decay=0.0)
    for batch in halves(labelled) * 3:
        gradients = torch.autograd.grad(sample.loss(other.train(), batch), trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    expected = update_norms(other.eval(), layers_by_path(other), halves(labelled), seen)
    assert found == pytest.approx(expected, rel=1e-4)
