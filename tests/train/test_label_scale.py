"""Numbers standardised while they are learned: the arithmetic, and the layer that it is put into."""

import statistics
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, mse_loss
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import (
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
)

from aurora_lora.methods import METHODS
from aurora_lora.train.data import notes
from aurora_lora.train.kinds.text import (
    LabelScale,
    compute_in_float32,
    held_by_float32,
    mean_and_deviation,
    output_layer,
)

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 20}
BART = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 20}
HEADS = {
    "classifier": BertConfig(**SMALL, num_labels=1),
    "classifier.out_proj": RobertaConfig(**SMALL, num_labels=1),
    "classifier ": DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=20, num_labels=1),
    "classification_head.out_proj": BartConfig(**BART, decoder_attention_heads=2, num_labels=1),
    "score": LlamaConfig(**SMALL, num_labels=1),
    "score ": GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, num_labels=1),
}


@pytest.mark.parametrize(("path", "config"), HEADS.items(), ids=[type(one).__name__ for one in HEADS.values()])
def test_the_output_layer(path: str, config: Any) -> None:
    """Of a plain model, and in PEFT's copy of the head, which is the one that is trained."""
    model = Classifier.from_config(config)
    assert output_layer(model) is model.get_submodule(path.strip())
    assert (output_layer(model).bias is None) == path.startswith("score")
    adapted = METHODS["lora"].bind({"target_modules": "all-linear"}).apply(model, "SEQ_CLS")
    layer = output_layer(adapted)
    assert layer is not None
    assert layer.weight.requires_grad
    names = {id(module): name for name, module in adapted.named_modules()}
    assert ".modules_to_save.default" in names[id(layer)]


def test_heads_without_an_output_layer() -> None:
    config = BertConfig(**SMALL, num_labels=2)
    model = Classifier.from_config(config)
    assert output_layer(model) is None  # two outputs
    model.classifier = nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 1))
    assert output_layer(model) is None  # two such layers
    assert output_layer(model.bert) is None  # no head


def test_mean_and_deviation() -> None:
    labels = [1e9 + value for value in (0.5, -1.25, 3.0, 0.125)]
    mean, deviation = mean_and_deviation(labels)
    assert mean == statistics.mean(labels)
    assert deviation == pytest.approx(statistics.pstdev(labels), rel=1e-12)
    assert mean_and_deviation(labels[::-1]) == (mean, deviation)


def test_loss_is_that_of_standardised_labels() -> None:
    labels = torch.tensor([300_000.0, 250_000.0, -100.0, 410_000.0])
    logits = torch.randn(4, 1, requires_grad=True)
    scale = LabelScale(310_000.0, 50_000.0)
    counted = torch.tensor([0, 1, 3])
    wanted = (labels[counted] - 310_000.0) / 50_000.0
    expected = mse_loss(logits[counted, 0], wanted, reduction="sum")
    for items, divisor in ((None, 4), (7, 7)):
        loss = scale.loss({"logits": logits}, labels, items)
        torch.testing.assert_close(loss, expected / divisor)
    (gradient,) = torch.autograd.grad(scale.loss({"logits": logits}, labels, 3), logits)
    torch.testing.assert_close(gradient[counted, 0], 2 * (logits[counted, 0].detach() - wanted) / 3)
    assert gradient[2] == 0


DAYS = [2_460_310.1 + n / 10 for n in range(40)]


def test_labels_that_float32_rounds_are_standardised_before_it_does() -> None:
    assert len(set(torch.tensor(DAYS).tolist())) < 20  # of 40
    assert not held_by_float32(DAYS)
    assert held_by_float32([0.5, -3.0, 1e6])
    mean, deviation = mean_and_deviation(DAYS)
    labels, logits = torch.tensor(DAYS, dtype=torch.float64), torch.zeros(40, 1)
    wanted = ((labels - mean) / deviation).float()
    scale = LabelScale(mean, deviation, in_float64=True)
    assert torch.equal(scale.loss({"logits": logits}, labels), wanted.square().sum() / 40)
    torch.testing.assert_close(scale.in_label_units(wanted[:, None], labels)[:, 0], labels, rtol=0, atol=1e-6)


def test_labels_that_float32_holds_are_standardised_in_it() -> None:
    """To the bit, whatever the batch holds them in."""
    labels, logits = torch.tensor([3.0, 4.5, -100.0, 2003.25]), torch.randn(4, 1)
    scale = LabelScale(670.1, 941.3)
    errors = logits.squeeze(-1) - (labels - 670.1) / 941.3
    expected = torch.where(labels == -100, 0.0, errors).square().sum() / 4
    for given in (labels, labels.double()):
        assert torch.equal(scale.loss({"logits": logits}, given), expected)
    assert expected.dtype == scale.in_label_units(logits, labels).dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_layer_gives_label_units(bias: bool) -> None:
    layer = nn.Linear(8, 1, bias=bias)
    scale = LabelScale(2000.0 if bias else 0.0, 12.5)
    x = torch.randn(5, 8)
    expected = scale.in_label_units(layer(x), torch.empty(5)).detach()
    torch.testing.assert_close(expected, 12.5 * layer(x).detach() + scale.mean)
    scale.fold(layer)
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-6, atol=1e-4)


def test_half_precision_keeps_a_year() -> None:
    layer = nn.Linear(8, 1)
    LabelScale(2003.0, 1.5).fold(layer)
    x = torch.randn(5, 8, dtype=torch.bfloat16)
    exact = linear(x.float(), layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        compute_in_float32(layer)
        found = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
    assert torch.equal(found, exact)
    found.sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.float().sum(0, keepdim=True))


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ("standardised", "trained standardised, saved in their own units"),
        ("divided by their root mean square", "trained divided by their root mean square, saved in their own units"),
        ("as they are", "trained as they are; the model's head ends in no layer that could hold them"),
    ],
)
def test_what_is_said(trained: str, said: str) -> None:
    record = {"examples": {"train": 3}, "repeated": 0, "unused": 0}
    labels = {"mean": 3e5, "deviation": 5e4, "trained": trained}
    line = f"labels: mean 300,000, standard deviation 50,000; {said}"
    assert notes({**record, "labels": labels}) == ["examples: 3 train", line]
    assert notes(record) == ["examples: 3 train"]
