"""LoRA-GA's start: along the gradient of the loss, taken out of the base weight, and there again when it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aurora_lora.errors import CheckpointError
from aurora_lora.methods import METHODS, Sample
from aurora_lora.methods.singular import START_FILE, gradients

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


def test_the_gradient_is_the_mean_over_all_batches(
    make_model: MakeModel, sample: Sample, labelled: dict[str, torch.Tensor]
) -> None:
    halves = [{name: value[part] for name, value in labelled.items()} for part in (slice(0, 8), slice(8, 16))]
    model = make_model("bert").eval()
    layer = {PATHS["bert"]: model.get_submodule(PATHS["bert"])}
    whole, both, last = (
        gradients(model, layer, sample, some)[PATHS["bert"]] for some in ([labelled], halves, halves[1:])
    )
    torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(last, whole, rtol=0.1, atol=1e-6)


def test_a_start_that_is_there_is_not_looked_for(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    first = started(make_model, sample, tmp_path)
    assert (tmp_path / START_FILE).exists()
    blind = Sample(batches=lambda share: [], loss=sample.loss, learning_rate=1.0, seed=0, examples=1)
    again = started(make_model, blind, tmp_path).state_dict()
    assert all(
        torch.equal(value, again[name]) for name, value in first.state_dict().items() if "classifier" not in name
    )


def test_an_adapter_without_its_start_is_refused(make_model: MakeModel, sample: Sample, tmp_path: Path) -> None:
    """It cannot be made again: the base weight that was trained beside would be another."""
    method = METHODS["lora-ga"].bind(OPTIONS)
    method.save(started(make_model, sample, tmp_path / "kept"), tmp_path / "adapter")
    method.load(make_model("bert"), tmp_path / "adapter")
    (tmp_path / "adapter" / START_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"has no start\.safetensors"):
        method.load(make_model("bert"), tmp_path / "adapter")
    (tmp_path / "kept" / START_FILE).unlink()
    (tmp_path / "kept" / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match=r"has checkpoints, but not their start\.safetensors"):
        started(make_model, sample, tmp_path / "kept")
