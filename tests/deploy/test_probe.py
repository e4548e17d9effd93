"""`probe` against full gradients and `torch.linalg.svd`, on every kind of layer, and what it leaves behind."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, CalibrationError, probe
from aurora_lora.deploy.gradients import frozen_linears


@pytest.fixture
def texts(batches):
    return [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in batches
    ]


def full_gradients(model, batches, layers):
    """G (d_out, d_in) of each layer in float64: the mean over the batches, with a gradient of the weight itself."""
    modules = {path: layer for path, layer in frozen_linears(model).items() if path in layers}
    parameters = [module.weight for module in modules.values()]
    found = dict.fromkeys(modules, 0.0)
    was = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in batches:
        gradients = torch.autograd.grad(model(**batch).loss, parameters)
        for (path, module), gradient in zip(modules.items(), gradients, strict=True):
            upright = gradient.T if hasattr(module, "nf") else gradient.flatten(1)
            found[path] = found[path] + upright.double() / len(batches)
    for parameter, required in zip(parameters, was, strict=True):
        parameter.requires_grad_(required)
    return found


def angle(one, other):
    """The largest angle between the row spaces of two matrices with orthonormal rows."""
    outside = other.double() - other.double() @ one.double().T @ one.double()
    return torch.linalg.matrix_norm(outside, ord=2).clamp(max=1).asin().item()


def assert_found(found, gradients, least=1, gap=5):
    """Singular values, and the subspace wherever the last singular value in it is `gap` times the next one."""
    compared = 0
    for layer in found.layers:
        _, S, Vh = torch.linalg.svd(gradients[layer.layer], full_matrices=False)
        k = len(layer.singular_values)
        assert layer.directions.shape == (k, layer.d_in)
        assert (layer.d_out, layer.d_in) == gradients[layer.layer].shape
        torch.testing.assert_close(layer.singular_values.double(), S[:k], atol=5e-2 * S[0].item(), rtol=0)
        for j in range(1, k + 1):
            if j < len(S) and S[j] < S[j - 1] / gap and S[j - 1] > 1e-5 * S[0]:
                assert angle(layer.directions[:j], Vh[:j]) < 1e-2, (layer.layer, j)
                compared += 1
    assert compared >= least


def test_every_linear_layer_of_a_plain_model(make_bert, labelled):
    model = make_bert(hidden_size=64, intermediate_size=96)
    found = probe(model, labelled, rank=4)
    assert [layer.layer for layer in found.layers] == list(frozen_linears(model))
    assert len(found.layers) == 14
    assert (found.batches, found.passes, found.without_gradient) == (4, 3, ())
    gradients = full_gradients(model, labelled, frozen_linears(model))
    assert_found(found, gradients, least=10)
    sharper = probe(model, labelled, rank=4, power_iterations=2)
    assert sharper.passes == 5
    assert_found(sharper, gradients, least=15, gap=2)


@pytest.mark.parametrize("config", [AuroraConfig, LoraConfig])
def test_a_model_with_an_adapter_has_the_gradients_of_its_frozen_weights(make_bert, labelled, config):
    plain = probe(make_bert(), labelled, target_modules=["query", "dense"])
    model = get_peft_model(make_bert(), config(target_modules=["query", "dense"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probe(model, labelled, target_modules=["query", "dense"])
    assert [layer.layer for layer in found.layers] == [layer.layer for layer in plain.layers]
    for one, other in zip(found.layers, plain.layers, strict=True):
        torch.testing.assert_close(one.singular_values, other.singular_values)
        torch.testing.assert_close(one.directions[0], other.directions[0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(("lora_" in name) or ("aurora_" in name) for name in trained)


def test_conv1d(make_gpt2, texts):
    model = make_gpt2()
    found = probe(model, texts, power_iterations=2)
    assert "lm_head" not in {layer.layer for layer in found.layers}
    assert_found(found, full_gradients(model, texts, frozen_linears(model)), gap=1.5)


def assert_same(one, other, atol=1e-5):
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.layer == b.layer
        torch.testing.assert_close(a.singular_values, b.singular_values, atol=atol, rtol=1e-4)
        torch.testing.assert_close(a.directions[:2], b.directions[:2], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(a.deviations[:2], b.deviations[:2], atol=1e-3, rtol=1e-3)


def test_gradient_checkpointing(make_gpt2, texts):
    """Blocks are computed once more in the backward pass, without dropout, whatever has a gradient."""
    model = make_gpt2()
    blocks = model.transformer.h
    expected = probe(model, texts, rank=2)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    calls = []
    handle = blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    inside = next(one for one in blocks[0].modules() if isinstance(one, (nn.Linear, nn.LayerNorm)))
    inside.register_forward_hook(lambda *_: calls.append("inside"))
    assert_same(probe(model, texts, rank=2), expected)
    backward_passes = 2 * len(texts)
    assert calls.count("inside") == calls.count("block") + backward_passes
    assert not any(module.training for module in model.modules())
    assert getattr(model.config, "use_cache", True)
    assert not any("forward" in vars(block) for block in blocks)
    handle.remove()


def test_what_it_leaves_behind(make_bert, labelled):
    model = make_bert().train()
    model.bert.encoder.layer[0].eval()
    modes = {module: module.training for module in model.modules()}
    model(**labelled[0]).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def loss(model, batch):
        torch.rand(1)
        return model(**batch).loss

    probe(model, iter(labelled), loss=loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert {module: module.training for module in model.modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradients[name])


def test_what_it_refuses(make_bert, labelled, batches):
    model = make_bert()
    for kind, match, given, options in (
        (CalibrationError, "gives no loss: labels are needed in the batches, or loss", batches, {}),
        (CalibrationError, "needs at least one batch", [], {}),
        (CalibrationError, "depends on none of the layers", labelled, {"loss": lambda *_: torch.zeros(())}),
        (
            CalibrationError,
            "The gradient of .* is not finite",
            labelled,
            {"loss": lambda m, b: m(**b).loss / 0},
        ),
        (ValueError, r"target_modules=\['nothing'\] names no linear layer", labelled, {"target_modules": ["nothing"]}),
        (ValueError, "rank=0 is not allowed: it must be a whole number of at least 1", labelled, {"rank": 0}),
        (TypeError, "needs tokenizer=", Dataset.from_dict({"text": ["a"]}), {}),
    ):
        with pytest.raises(kind, match=match):
            probe(model, given, **options)


@pytest.mark.parametrize("quantisation", ["nf4", "int8", "torchao int8"])
def test_a_quantised_base(tmp_path, quantisation):
    sys.path.insert(0, str(Path(__file__).parent))
    quantised = pytest.importorskip("quantised")
    base = quantised.load(quantised.save_base(tmp_path), quantisation)
    texts = [{**batch, "labels": batch["input_ids"]} for batch in quantised.batches(2)]
    found = probe(base, texts, rank=2)
    assert len(found.layers) == 14
    dense = quantised.dense_copy(base)
    # int8 of bitsandbytes rounds the activations, too
    atol = 0.01 if quantisation == "int8" else 1e-4
    for one, other in zip(found.layers, probe(dense, texts, rank=2).layers, strict=True):
        assert one.layer == other.layer
        torch.testing.assert_close(one.singular_values[0], other.singular_values[0], atol=0, rtol=atol)
        assert (one.directions[0] @ other.directions[0]).abs() > 1 - atol
