"""`fitted_head` against a plain loop, and what it leaves behind."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_lora import CalibrationError, fitted_head, probe
from aurora_lora.deploy import head as of_head
from aurora_lora.deploy.batch import bytes_of
from aurora_lora.deploy.processes import leave_processes

RATE = 0.05


def not_a_number(model, batch):
    return model(**batch).loss * float("nan")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_plain_loop(model, batches, passes):
    """The head's weights after AdamW over the whole model, a step for each batch."""
    model = copy.deepcopy(model).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(head, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=passes * len(batches))
    for _ in range(passes):
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()
    return weights(model.classifier)


@pytest.mark.parametrize("kept", [1, 0, 0.5], ids=["kept", "run again", "some kept"])
def test_as_a_plain_loop(make_bert, labelled, monkeypatch, kept):
    model = make_bert()
    with torch.no_grad():
        needed = sum(bytes_of(model.bert(batch["input_ids"])) for batch in labelled)
    monkeypatch.setattr(of_head, "HELD_BYTES", kept * needed)
    calls, encoded = [], []
    hooks = [
        model.bert.register_forward_hook(lambda *_: calls.append(1)),
        model.bert.encoder.register_forward_hook(lambda *_: encoded.append(1)),
    ]
    before = weights(model)
    with fitted_head(model, labelled, learning_rate=RATE, passes=3):
        inside = weights(model)
    for hook in hooks:
        hook.remove()
    wanted = by_plain_loop(model, labelled, 3)
    torch.testing.assert_close({name: inside[f"classifier.{name}"] for name in wanted}, wanted)
    assert {name for name in inside if not torch.equal(inside[name], before[name])} == {
        f"classifier.{name}" for name in wanted
    }
    assert same(weights(model), before)
    assert len(calls) == 3 * len(labelled)
    if kept == 0.5:
        assert len(labelled) < len(encoded) < 3 * len(labelled)
    else:
        assert len(encoded) == (len(labelled) if kept else 3 * len(labelled))


def test_all_else_is_as_before(make_bert, labelled):
    model = make_bert().train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    model.bert.pooler.dense.weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(KeyError), fitted_head(model, labelled, learning_rate=RATE):  # noqa: PT012
        assert not torch.equal(model.classifier.weight, before["classifier.weight"])
        assert [parameter.requires_grad for parameter in model.parameters()] == required
        assert all(module.training for module in model.modules())
        assert "forward" not in model.bert.__dict__
        raise KeyError
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((model.classifier.weight.grad == 1).all())
    assert model.bert.pooler.dense.weight.grad is None


def test_a_forward_of_its_own_is_put_back(make_bert, labelled):
    """Accelerate's hooks put one on the module."""
    model = make_bert()
    own = model.bert.forward
    model.bert.forward = own
    with fitted_head(model, labelled, learning_rate=RATE):
        assert model.bert.__dict__["forward"] is own


def test_of_an_adapted_model(make_bert, labelled):
    model = get_peft_model(make_bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    head = model.base_model.model.classifier
    before = weights(model)
    with fitted_head(model, labelled, learning_rate=RATE):
        inside = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
        wanted = by_plain_loop(make_bert(), labelled, of_head.PASSES)
        torch.testing.assert_close(weights(head.modules_to_save["default"]), wanted)
        adapted = probe(model, labelled, rank=2)
    assert inside
    assert all(".classifier.modules_to_save.default." in name for name in inside)
    assert same(weights(model), before)
    other = make_bert()
    with fitted_head(other, labelled, learning_rate=RATE, modules=["classifier"]):
        plain = {one.layer: one.singular_values for one in probe(other, labelled, rank=2).layers}
    assert len(adapted.layers) == len(plain) - 1  # the head, which is trained whole there
    for one in adapted.layers:
        torch.testing.assert_close(one.singular_values, plain[one.layer], rtol=1e-3, atol=1e-6)


def test_a_head_within_the_body(make_bert, labelled):
    """A module that the checkpoint has no weights for: the body is run again, with gradients."""
    model = make_bert()
    before = weights(model)
    with fitted_head(model, labelled, learning_rate=RATE, modules=["classifier", "bert.pooler"]):
        changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {"classifier", "bert.pooler.dense"}


def test_small_steps_in_a_low_precision(make_bert, labelled):
    model = make_bert().bfloat16()
    before = model.classifier.weight.float()
    with fitted_head(model, labelled * 8, learning_rate=2e-5, passes=4):  # each step is below bfloat16's resolution
        moved = (model.classifier.weight.float() - before).abs()
    exact = make_bert()
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    with fitted_head(exact, labelled * 8, learning_rate=2e-5, passes=4):
        wanted = (exact.classifier.weight - before).abs()
    assert moved.mean().item() == pytest.approx(wanted.mean().item(), rel=0.2)


def test_an_iterator_is_enough(make_bert, labelled):
    one, other = make_bert(), make_bert()
    with fitted_head(one, iter(labelled), learning_rate=RATE), fitted_head(other, labelled, learning_rate=RATE):
        assert same(weights(one), weights(other))


def test_a_loss_of_ones_own(make_bert, labelled):
    model = make_bert()

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch["input_ids"]).logits, torch.ones(len(batch["labels"]), 2))

    before = loss(model, labelled[0]).item()
    with fitted_head(model, labelled, learning_rate=RATE, passes=20, loss=loss), torch.no_grad():
        assert loss(model, labelled[0]).item() < 0.2 * before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"learning_rate": 0}, ValueError, r"learning_rate=0 is not allowed: it must be a finite number above 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate=nan"),
        ({"passes": 0}, ValueError, r"passes=0 is not allowed: it must be a whole number of at least 1"),
        ({"modules": ["head"]}, ValueError, r"modules=\['head'\] is not allowed: the model has no module 'head'"),
        ({"modules": ["dropout"]}, ValueError, "has no head with weights there.*bert, dropout, classifier"),
        ({"loss": 3}, TypeError, "loss=3 is not allowed"),
        ({"loss": lambda model, batch: torch.ones(())}, CalibrationError, "The loss does not depend on the head"),
        ({"loss": lambda model, batch: torch.ones(2)}, CalibrationError, "loss must return a tensor with one element"),
        ({"batches": []}, CalibrationError, "fitted_head needs at least one batch"),
        ({"batches": 3}, TypeError, "batches must be an iterable"),
        ({"loss": not_a_number}, CalibrationError, r"not finite: the loss is not, or learning_rate=0.05 is too high"),
    ],
)
def test_mistakes(make_bert, labelled, changes, error, message):
    model = make_bert()
    before = weights(model)
    given = {"batches": labelled, "learning_rate": RATE, **changes}
    with pytest.raises(error, match=message), fitted_head(model, given.pop("batches"), **given):
        pass
    assert same(weights(model), before)


def test_without_labels(make_bert, batches):
    with pytest.raises(CalibrationError, match="gives no loss"), fitted_head(make_bert(), batches, learning_rate=RATE):
        pass


def test_a_model_without_a_head(make_bert, labelled):
    with pytest.raises(ValueError, match="modules=None"), fitted_head(make_bert().bert, labelled, learning_rate=RATE):
        pass


def fit_a_share(rank, world, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world)
    model, data = torch.load(f"{folder}/all.pt", weights_only=False)
    with fitted_head(model, data[rank::world], learning_rate=RATE):
        torch.save(weights(model.classifier), f"{folder}/{rank}.pt")
    leave_processes()


def test_several_processes_have_one_head(make_bert, labelled, tmp_path):
    model, data = make_bert(), labelled[:3]
    torch.save((model, data), tmp_path / "all.pt")
    mp.spawn(fit_a_share, args=(2, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(one, other)
    apart = [by_plain_loop(model, data[rank::2], of_head.PASSES) for rank in (0, 1)]
    torch.testing.assert_close(one, {name: (apart[0][name] + apart[1][name]) / 2 for name in one})
