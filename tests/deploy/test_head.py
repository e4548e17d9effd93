"""`fitted_head` against scikit-learn, and what it leaves behind."""

import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from aurora_lora import CalibrationError, fitted_head, probe
from aurora_lora.deploy import head as of_head
from aurora_lora.deploy.batch import bytes_of
from aurora_lora.deploy.processes import leave_processes


def not_a_number(model, batch):
    return model(**batch).loss * float("nan")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def mean_loss(model, batches):
    with torch.no_grad():
        return (sum(model.eval()(**batch).loss for batch in batches) / len(batches)).item()


def test_it_reaches_the_least_loss(make_bert, labelled):
    """On a head that is a linear map, with a penalty, so that there is one least loss."""

    def loss(model, batch):
        return model(**batch).loss + 0.1 * model.classifier.weight.square().sum()

    model = make_bert()
    before = weights(model)
    with fitted_head(model, labelled, iterations=100, loss=loss):
        inside = weights(model)
        features = []
        hook = model.classifier.register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
        mean_loss(model, labelled)
        hook.remove()
    x, y = torch.cat(features).double().numpy(), torch.cat([batch["labels"] for batch in labelled]).numpy()
    # two classes with a penalty on both rows: as a logistic regression on their difference, with half of it
    wanted = LogisticRegression(C=1 / (len(y) * 0.1), tol=1e-10, max_iter=10_000).fit(x, y)
    found = inside["classifier.weight"][1] - inside["classifier.weight"][0]
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted.coef_[0]), atol=2e-3, rtol=2e-2)
    assert {name for name in inside if not torch.equal(inside[name], before[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert same(weights(model), before)


def test_as_by_hand(make_bert, labelled):
    """The mean loss over the batches and its gradient, from passes of the whole model."""
    model, by_hand = make_bert(), make_bert().eval()
    head = list(by_hand.classifier.parameters())
    optimizer = torch.optim.LBFGS(head, max_iter=of_head.ITERATIONS, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = sum(by_hand(**batch).loss for batch in labelled) / len(labelled)
        loss.backward(inputs=head)
        return loss

    optimizer.step(closure)
    with fitted_head(model, labelled):
        torch.testing.assert_close(weights(model.classifier), weights(by_hand.classifier), atol=1e-3, rtol=1e-2)


def test_more_iterations_fit_better(make_bert, labelled):
    model = make_bert()
    losses = [mean_loss(model, labelled)]
    for iterations in (1, 5, 20):
        with fitted_head(model, labelled, iterations=iterations):
            losses.append(mean_loss(model, labelled))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("mixed", [False, True], ids=["one call", "two calls"])
def test_the_body_runs_each_batch_once(make_bert, labelled, mixed):
    """Also where the loss calls the model twice, on other inputs: each call gets the body's outputs for its own."""
    model = make_bert()

    def loss(model, batch):
        other = {**batch, "input_ids": batch["input_ids"].flip(0), "attention_mask": batch["attention_mask"].flip(0)}
        apart = model(**batch).logits - (model(**other).logits if mixed else 0)
        return nn.functional.cross_entropy(apart, batch["labels"])

    encoded = []
    hook = model.bert.encoder.register_forward_hook(lambda *_: encoded.append(1))
    with fitted_head(model, labelled, loss=loss):
        kept = weights(model.classifier)
    hook.remove()
    assert len(encoded) == len(labelled) * (2 if mixed else 1)
    with nothing_kept(), fitted_head(model, labelled, loss=loss):
        again = weights(model.classifier)
    torch.testing.assert_close(kept, again, atol=1e-4, rtol=1e-3)
    assert "forward" not in model.bert.__dict__


@contextmanager
def nothing_kept():
    """The body runs for each evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_head, "bytes_of", lambda _: sys.maxsize)
        yield


def test_a_head_that_works_in_place(make_bert, labelled):
    model = make_bert()
    model.classifier = nn.Sequential(nn.Hardswish(inplace=True), model.classifier)
    with fitted_head(model, labelled):
        kept = weights(model.classifier)
    with nothing_kept(), fitted_head(model, labelled):
        torch.testing.assert_close(kept, weights(model.classifier), atol=1e-4, rtol=1e-3)


def test_a_loss_that_draws(make_bert, labelled):
    """What it draws is the same in each evaluation."""
    model = make_bert()

    def loss(model, batch):
        order = torch.randperm(len(batch["labels"]))
        return model(**{name: value[order] for name, value in batch.items()}).loss

    with fitted_head(model, labelled):
        wanted = weights(model.classifier)
    with fitted_head(model, labelled, loss=loss):
        torch.testing.assert_close(weights(model.classifier), wanted, atol=1e-3, rtol=1e-2)


def test_values_of_which_nobody_knows_the_size(make_bert, labelled):
    model = make_bert()

    def loss(model, batch):
        return model(**{name: value for name, value in batch.items() if name != "note"}).loss

    with fitted_head(model, labelled):
        wanted = weights(model.classifier)
    with fitted_head(model, [{**batch, "note": np.int64(1)} for batch in labelled], loss=loss):
        assert same(weights(model.classifier), wanted)


def test_what_there_is_room_for(make_bert, labelled, monkeypatch):
    model = make_bert()
    with torch.no_grad():
        each = [bytes_of(batch) + bytes_of(model.bert(batch["input_ids"])) for batch in labelled]
    for room, count in ((0, 1), (sum(each[:2]), 2), (sum(each), len(each))):
        monkeypatch.setattr(of_head, "ROOM", room)
        with fitted_head(model, iter(labelled)):
            found = weights(model.classifier)
        monkeypatch.setattr(of_head, "ROOM", 2**30)
        with fitted_head(model, labelled[:count]):
            assert same(weights(model.classifier), found), count


def test_a_loader_in_another_order_each_time(make_bert, labelled):
    """It is read once."""
    model = make_bert()
    with fitted_head(model, labelled):
        wanted = weights(model.classifier)
    loader = DataLoader(labelled, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(1))
    with fitted_head(model, loader):
        torch.testing.assert_close(weights(model.classifier), wanted, atol=1e-3, rtol=1e-2)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(labelled)

    with fitted_head(model, DataLoader(Stream(), batch_size=None)):
        assert same(weights(model.classifier), wanted)


def test_all_else_is_as_before(make_bert, labelled):
    model = make_bert().train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    model.bert.pooler.dense.weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(KeyError), fitted_head(model, labelled):  # noqa: PT012
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
    with fitted_head(model, labelled):
        assert model.bert.__dict__["forward"] is own


def test_of_an_adapted_model(make_bert, labelled):
    model = get_peft_model(make_bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    head = model.base_model.model.classifier
    before = weights(model)
    with fitted_head(model, labelled):
        inside = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
        fitted = weights(head.modules_to_save["default"])
        adapted = probe(model, labelled, rank=2)
    assert inside
    assert all(".classifier.modules_to_save.default." in name for name in inside)
    assert same(weights(model), before)
    other = make_bert()
    with fitted_head(other, labelled, modules=["classifier"]):
        torch.testing.assert_close(weights(other.classifier), fitted)
        plain = {one.layer: one.singular_values for one in probe(other, labelled, rank=2).layers}
    assert len(adapted.layers) == len(plain) - 1  # the head, which is trained whole there
    for one in adapted.layers:
        torch.testing.assert_close(one.singular_values, plain[one.layer], rtol=1e-3, atol=1e-6)


def test_of_the_active_adapter(make_bert, labelled):
    config = LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(make_bert(), config)
    model.add_adapter("other", config)
    model.set_adapter("other")
    before = weights(model)
    with fitted_head(model, labelled):
        changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".classifier.modules_to_save.other." in name for name in changed)


def test_a_head_within_the_body(make_bert, labelled):
    """A module that the checkpoint has no weights for: the body is run again, with gradients."""
    model = make_bert()
    before = weights(model)
    with fitted_head(model, labelled, modules=["classifier", "bert.pooler"]):
        changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {"classifier", "bert.pooler.dense"}


def test_a_decoder_keeps_no_cache(labelled):
    """Its body's outputs are kept as well: without keys and values."""
    vocabulary = 1 + max(int(batch["input_ids"].max()) for batch in labelled)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, pad_token_id=0, num_labels=2, **sizes)
    model = LlamaForSequenceClassification(config)
    layers = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: layers.append(1))
    before = mean_loss(model, labelled)
    layers.clear()
    with fitted_head(model, labelled):
        assert len(layers) == len(labelled)
        assert mean_loss(model, labelled) < before
    hook.remove()
    assert config.use_cache


def test_within_autocast(make_bert, labelled):
    """It casts weights once, and would go on with those of the start."""
    model = make_bert()
    with torch.autocast("cpu", torch.bfloat16), fitted_head(model, labelled):
        around = mean_loss(model, labelled)
    with fitted_head(model, labelled):
        assert around == pytest.approx(mean_loss(model, labelled), abs=0.05)


def test_in_a_low_precision(make_bert, labelled):
    model = make_bert().bfloat16()
    before = mean_loss(model, labelled)
    with fitted_head(model, labelled):
        assert model.classifier.weight.dtype == torch.bfloat16
        assert mean_loss(model, labelled) < 0.9 * before


def test_a_loss_of_ones_own(make_bert, labelled):
    model = make_bert()

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch["input_ids"]).logits, torch.ones(len(batch["labels"]), 2))

    before = loss(model, labelled[0]).item()
    with fitted_head(model, labelled, loss=loss), torch.no_grad():
        assert loss(model, labelled[0]).item() < 0.2 * before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"iterations": 0}, ValueError, r"iterations=0 is not allowed: it must be a whole number of at least 1"),
        ({"modules": ["head"]}, ValueError, r"modules=\['head'\] is not allowed: the model has no module 'head'"),
        ({"modules": "classifier"}, ValueError, "modules='classifier' is not allowed: it must be a list of paths"),
        ({"modules": 3}, ValueError, "modules=3 is not allowed"),
        ({"modules": ["dropout"]}, ValueError, "has no head with weights there.*bert, dropout, classifier"),
        ({"loss": 3}, TypeError, "loss=3 is not allowed"),
        ({"loss": lambda model, batch: torch.ones(())}, CalibrationError, "The loss does not depend on the head"),
        ({"loss": lambda model, batch: torch.ones(2)}, CalibrationError, "loss must return a tensor with one element"),
        ({"batches": []}, CalibrationError, "fitted_head needs at least one batch"),
        ({"batches": 3}, TypeError, "batches must be an iterable"),
        ({"batches": [3]}, TypeError, "A batch must be a dict of tensors"),
        ({"loss": not_a_number}, CalibrationError, "the loss over the batches is not finite"),
    ],
)
def test_mistakes(make_bert, labelled, changes, error, message):
    model = make_bert()
    before = weights(model)
    given = {"batches": labelled, **changes}
    with pytest.raises(error, match=message), fitted_head(model, given.pop("batches"), **given):
        pass
    assert same(weights(model), before)


def test_without_labels(make_bert, batches):
    with pytest.raises(CalibrationError, match="gives no loss"), fitted_head(make_bert(), batches):
        pass


def test_a_model_without_a_head(make_bert, labelled):
    with pytest.raises(ValueError, match="modules=None"), fitted_head(make_bert().bert, labelled):
        pass


def test_weights_that_are_not_there(make_bert, labelled):
    offloaded = make_bert()
    offloaded.classifier = offloaded.classifier.to("meta")
    with pytest.raises(CalibrationError, match="the whole head in memory"), fitted_head(offloaded, labelled):
        pass
    with torch.inference_mode():
        made = make_bert()
    with pytest.raises(CalibrationError, match="fitted_head needs gradients, and "), fitted_head(made, labelled):
        pass


def fit_a_share(rank, world, folder):
    store, wait = f"file://{folder}/store", timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=wait)
    model, data = torch.load(f"{folder}/all.pt", weights_only=False)
    with fitted_head(model, data[rank::world]):
        torch.save(weights(model.classifier), f"{folder}/{rank}.pt")
    try:
        with fitted_head(model, data[:1][rank::world]):
            torch.save(weights(model.classifier), f"{folder}/alone.pt")
    except CalibrationError:
        Path(folder, f"none-{rank}").touch()
    leave_processes()


def test_several_processes_have_one_head(make_bert, labelled, tmp_path):
    """The mean of their own; where one of them has no batch, it says so, and the others do not wait for it."""
    model, data = make_bert(), labelled[:3]
    torch.save((model, data), tmp_path / "all.pt")
    mp.spawn(fit_a_share, args=(2, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(one, other)
    apart = []
    for share in (data[::2], data[1::2], data[:1]):
        with fitted_head(model, share):
            apart.append(weights(model.classifier))
    torch.testing.assert_close(one, {name: (apart[0][name] + apart[1][name]) / 2 for name in one})
    torch.testing.assert_close(torch.load(tmp_path / "alone.pt"), apart[2])
    assert [path.name for path in tmp_path.glob("none-*")] == ["none-1"]
