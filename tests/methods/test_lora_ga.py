"""LoRA-GA's start: along the gradient of the loss, taken out of the base weight, and there again when it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aurora_lora.methods import METHODS, Sample
from aurora_lora.methods.pissa_milora import START_FILE

MakeModel = Callable[[str], Any]
OPTIONS = {"r": 3, "lora_alpha": 6, "target_modules": ["query"]}  # s = 2
PATHS = {"bert": "bert.encoder.layer.1.attention.self.query", "gpt2": "transformer.h.1.attn.c_attn"}


def started(make_model: MakeModel, sample: Sample, folder: Path, family: str = "bert", **options: Any) -> Any:
    base = make_model(family)
    given = {**OPTIONS, "target_modules": [PATHS[family].rpartition(".")[2]], **options}
    method = METHODS["lora-ga"].bind(given).looked(base, sample, folder)
    return method.apply(base, "SEQ_CLS" if family == "bert" else "CAUSAL_LM", folder)


@pytest.mark.parametrize("family", PATHS)
def test_the_authors_formula(make_model: MakeModel, sample: Sample, tmp_path: Path, family: str) -> None:
    """A has the r leading right singular vectors of the gradient, B the next r left ones, of one length in all layers.

    The reference is PyTorch's own backward pass over the whole model, and NumPy's decomposition.
    """
    model, path = make_model(family).eval(), PATHS[family]
    weight: Any = model.get_submodule(path).weight
    torch.autograd.backward(sample.loss(model, sample.batches(1.0)[0]))
    gradient = weight.grad.double().numpy()
    W0 = weight.detach().double().numpy()
    if family == "gpt2":
        gradient, W0 = gradient.T, W0.T
    U, S, Vh = np.linalg.svd(gradient)
    assert S[5] > 1.05 * S[6]  # so that the vectors are determined
    peft_model = started(make_model, sample, tmp_path, family)
    layer: Any = next(module for name, module in peft_model.named_modules() if name.endswith(path))
    A, B = (one["default"].weight.detach().double().numpy() for one in (layer.lora_A, layer.lora_B))
    c = gradient.shape[0] ** 0.25 / 4  # gamma = 16
    np.testing.assert_allclose(np.abs(np.diag(A @ Vh[:3].T)), c, rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.diag(B.T @ U[:, 3:6])), c, rtol=1e-3)
    np.testing.assert_allclose(A @ A.T, c**2 * np.eye(3), atol=1e-5)
    np.testing.assert_allclose(B.T @ B, c**2 * np.eye(3), atol=1e-5)
    base = layer.base_layer.weight.detach().double().numpy()
    np.testing.assert_allclose(base.T if family == "gpt2" else base, W0 - 2 * B @ A, atol=1e-6)


def test_a_step_at_the_start_follows_the_gradient(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    """A first step of gradient descent changes the weight more like full fine-tuning than a step of LoRA does."""

    def alike(model: Any) -> float:
        layer: Any = next(module for name, module in model.named_modules() if name.endswith(PATHS["bert"]))
        weight = layer.base_layer.weight.requires_grad_(True)
        A, B = (one["default"].weight for one in (layer.lora_A, layer.lora_B))
        G, gA, gB = torch.autograd.grad(sample.loss(model.eval(), sample.batches(1.0)[0]), (weight, A, B))
        return torch.cosine_similarity((gB @ A + B @ gA).flatten(), G.flatten(), dim=0).item()

    plain = METHODS["lora"].bind(OPTIONS).apply(make_model("bert"), "SEQ_CLS")
    assert alike(started(make_model, sample, tmp_path)) > 2 * alike(plain)


def test_the_base_is_left_as_it_was(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    base = make_model("bert").train()
    before = {name: (value.clone(), value.requires_grad) for name, value in base.named_parameters()}
    METHODS["lora-ga"].bind(OPTIONS).looked(base, sample, tmp_path)
    assert base.training
    for name, value in base.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
        assert value.grad is None


def test_a_start_that_is_there_is_not_looked_for(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    first = started(make_model, sample, tmp_path)
    assert (tmp_path / START_FILE).exists()
    blind = Sample(batches=lambda share: [], loss=sample.loss, learning_rate=1.0, seed=0, examples=1)
    again = started(make_model, blind, tmp_path).state_dict()
    assert all(
        torch.equal(value, again[name]) for name, value in first.state_dict().items() if "classifier" not in name
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 9}, "r=9 is not allowed: .* has 16 components, lora-ga takes 2 r of them"),
        ({"target_modules": ["word_embeddings"]}, "word_embeddings is a Embedding; lora-ga adapts torch.nn.Linear"),
    ],
)
def test_what_it_cannot_do(
    make_model: MakeModel, sample: Sample, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        started(make_model, sample, tmp_path, **options)


def test_a_gradient_that_is_not_finite(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Any) -> torch.Tensor:
        return sample.loss(model, batch) * torch.nan

    wild = Sample(sample.batches, broken, learning_rate=1.0, seed=0, examples=16)
    with pytest.raises(ValueError, match=r"the gradient of .*query is not finite"):
        started(make_model, wild, tmp_path)


@pytest.mark.parametrize(
    ("option", "value"), [("stable_gamma", 0.0), ("probe_examples", 0), ("init_lora_weights", True)]
)
def test_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        METHODS["lora-ga"].bind({option: value})
