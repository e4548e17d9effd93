"""The registry of methods, and what each of them does to a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from aurora_lora.errors import CheckpointError, FormError
from aurora_lora.methods import METHODS, count_parameters, get_method
from aurora_lora.methods.base import head_modules, is_head, load_trained, save_trained

OPTIONS = {"aurora": {"target_modules": ["query"]}, "lora": {"target_modules": ["query"], "r": 2}}
MakeBert = Callable[..., nn.Module]


def move(model: nn.Module) -> None:
    """Change every trained weight a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", METHODS)
def test_save_load_and_merge(
    make_bert: MakeBert, batches: list[dict[str, torch.Tensor]], tmp_path: Path, name: str
) -> None:
    """What was saved loads onto the base model as the same function, and so does its merge."""
    method = METHODS[name]
    options = method.validate({**OPTIONS.get(name, {}), **({"train_form": "static"} if name == "aurora" else {})})
    model = method.apply(make_bert(), options, "SEQ_CLS")
    move(model)
    method.save(model, tmp_path)
    loaded = method.load(make_bert(), tmp_path, options)
    merged = method.merge(method.load(make_bert(), tmp_path, options), method.deployed_form(options))
    assert not hasattr(merged, "peft_config")
    with torch.no_grad():
        expected = model.eval()(**batches[0]).logits
        assert not torch.allclose(expected, make_bert()(**batches[0]).logits)
        torch.testing.assert_close(loaded(**batches[0]).logits, expected)
        torch.testing.assert_close(merged.eval()(**batches[0]).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "adapter"),
    # BERT of the fixture: 2 query layers 32 x 32
    [("aurora", 2 * (2 * 64 + 4 + 16)), ("lora", 2 * 2 * 64), ("linear-probe", 0), ("full", None)],
)
def test_parameter_counts(make_bert: MakeBert, name: str, adapter: int | None) -> None:
    base = make_bert()
    everything = sum(parameter.numel() for parameter in base.parameters())
    head = 2 * 32 + 2
    method = METHODS[name]
    counts = count_parameters(method.apply(base, method.validate(OPTIONS.get(name, {})), "SEQ_CLS"))
    assert counts.head == head
    assert counts.adapter == (everything - head if adapter is None else adapter)
    assert counts.total == everything + (adapter or 0)


def test_head_of_a_model(make_bert: MakeBert) -> None:
    model = make_bert()
    assert head_modules(model) == ["classifier"]
    assert is_head(model, "classifier.weight")
    assert not is_head(model, "bert.pooler.dense.weight")
    peft_model = METHODS["lora"].apply(model, OPTIONS["lora"], "SEQ_CLS")
    heads = [name for name, p in peft_model.named_parameters() if p.requires_grad and is_head(peft_model, name)]
    assert len(heads) == 2
    assert all("classifier.modules_to_save" in name for name in heads)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aurora", {"splin": 1}, "splin: unknown option; did you mean 'spline'"),
        ("aurora", {"peft_type": "LORA"}, "peft_type: unknown option"),
        ("aurora", {"dropout": 1.0}, "dropout=1.0 is not allowed"),
        ("lora", {"lora_alfa": 1}, "lora_alfa: unknown option; did you mean 'lora_alpha'"),
        ("lora", {"r": 0}, "r=0 is not allowed"),
        ("lora", {"lora_dropout": 1.0}, "lora_dropout=1.0 is not allowed"),
        ("full", {"r": 1}, "r: unknown option; there are none here"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        METHODS[name].validate(options)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="did you mean 'linear-probe'"):
        get_method("linear_probe")


def test_forms() -> None:
    aurora = METHODS["aurora"]
    assert aurora.forms({}) == ("dynamic", "static", "calibrated")
    assert aurora.deployed_form({}) == "calibrated"
    assert aurora.deployed_form({"eval_form": "static"}) == "static"
    assert aurora.forms({"train_form": "static"}) == ("static",)
    assert METHODS["full"].forms({}) == ("merged",)


@pytest.mark.parametrize("name", ["lora", "full", "linear-probe"])
def test_form_that_a_method_lacks(make_bert: MakeBert, name: str) -> None:
    model = METHODS[name].apply(make_bert(), OPTIONS.get(name, {}), "SEQ_CLS")
    with pytest.raises(FormError, match="one form only"):
        METHODS[name].merge(model, "static")


def test_trained_weights_that_do_not_fit(make_bert: MakeBert, tmp_path: Path) -> None:
    model = make_bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    save_trained(model, tmp_path)
    load_trained(model, tmp_path)
    model.requires_grad_(True)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_trained(model, tmp_path)
