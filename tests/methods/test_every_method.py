"""What holds for every method of METHODS, on a classifier (BERT) and language models (GPT-2, Llama)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aurora_lora import calibrate
from aurora_lora.errors import FormError
from aurora_lora.forms import MERGED
from aurora_lora.methods import METHODS, Method
from aurora_lora.methods.base import TaskType
from aurora_lora.methods.parameters import is_head, load_trained, save_trained

CLASSIFIERS, LANGUAGE_MODELS = ("bert",), ("llama-lm", "gpt2")
TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn", "c_fc"]}
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "fourierft": {"n_frequency": 60, "scaling": 10.0},
    "sine-lora": {"r": 4, "frequency": 20.0},
    "vera": {"r": 32},
    "adapter-h": {"r": 8},
    "adapter-p": {"r": 8},
    "adapter-d": {"r": 8, "drop_layers": 1},
    "lora-drop": {"r": 4, "sample_share": 1.0},
    "hira": {"r": 8},
}
RATES = {"full": 1e-3}
"""Learning rates other than 2e-2."""
OWN_TARGETS = ("adapter-h", "adapter-p", "adapter-d", "bitfit", "linear-probe", "full")
REFUSED = {
    *(("linear-probe", family) for family in LANGUAGE_MODELS),  # no head
    ("bitfit", "llama-lm"),  # no biases
    ("neat", "gpt2"),  # PEFT's does not adapt Conv1D
}
CASES = [
    (name, family)
    for name in METHODS
    for family in (*CLASSIFIERS, *LANGUAGE_MODELS)
    # the presets of AuroRA are one code
    if (name, family) not in REFUSED and (family == "bert" or not name.startswith("aurora-"))
]
UNMERGEABLE = ("loda", "adapter-h", "adapter-p", "adapter-d")

MakeModel = Callable[[str], Any]
Batches = list[dict[str, torch.Tensor]]


def bound(name: str, family: str) -> Method:
    """With small options."""
    given = dict(SMALL.get(name, {}))
    if name not in OWN_TARGETS:
        given["target_modules"] = TARGETS.get(family, ["q_proj", "v_proj"])
    if name.startswith("aurora"):
        given["r"] = 4
    return METHODS[name].bind(given)


def applied(make_model: MakeModel, name: str, family: str) -> tuple[nn.Module, dict[str, Any]]:
    method = bound(name, family)
    return method.apply(make_model(family), task_type(family)), method


def task_type(family: str) -> TaskType:
    return "SEQ_CLS" if family in CLASSIFIERS else "CAUSAL_LM"


def shake(model: nn.Module) -> None:
    """Change every trained weight a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def outputs(model: nn.Module, batches: Batches) -> torch.Tensor:
    with torch.no_grad():
        logits = [model.eval()(**batch).logits for batch in batches]
    return torch.cat([one.flatten(0, -2) for one in logits])


@pytest.mark.parametrize(("name", "family"), CASES)
def test_head_and_nothing_else_of_the_base(make_model: MakeModel, name: str, family: str) -> None:
    """The head is trained; unless the method says so, no weight of the pretrained body is.

    A language model's output layer is of the body.
    """
    base = {parameter_name for parameter_name, _ in make_model(family).named_parameters()}
    model, _ = applied(make_model, name, family)
    heads = [n for n, p in model.named_parameters() if p.requires_grad and is_head(model, n)]
    assert bool(heads) == (family in CLASSIFIERS)
    if name not in ("full", "bitfit", "adapter-h"):
        trained = {n for n, p in model.named_parameters() if p.requires_grad and not is_head(model, n)}
        assert not trained & base
        assert not any("base_layer" in n for n in trained)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_starts_as_the_pretrained_model(make_model: MakeModel, batches: Batches, name: str, family: str) -> None:
    """Bottleneck adapters start near it, all the others at it, but for FourierFT, whose coefficients are N(0, 1)."""
    if name == "fourierft":
        pytest.skip("FourierFT starts with a random update, as in its paper")
    model, _ = applied(make_model, name, family)
    near = name.startswith("adapter-")
    torch.testing.assert_close(
        outputs(model, batches),
        outputs(make_model(family), batches),
        rtol=5e-2 if near else 1e-4,
        atol=5e-2 if near else 1e-5,
    )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=[] if family == "bert" else pytest.mark.slow)
        for name, family in CASES
        if name != "linear-probe"
    ],
)
def test_learns(
    make_model: MakeModel, fit: Callable[..., None], loss: Callable[[nn.Module], float], name: str, family: str
) -> None:
    """With the head frozen, the body's part alone makes the loss on 16 examples fall by a third (trained form)."""
    model, method = applied(make_model, name, family)
    before = loss(model)
    fit(method, model, steps=30, lr=RATES.get(name, 2e-2))
    with method.using(model, method.forms[0]):
        assert loss(model) < 0.67 * before


@pytest.mark.parametrize("name", METHODS)
def test_trained_weights_go_on_in_a_new_model(
    make_model: MakeModel, batches: Batches, tmp_path: Path, name: str
) -> None:
    """What is trained, and buffers, are all that a checkpoint needs."""
    model, _ = applied(make_model, name, "bert")
    shake(model)
    save_trained(model, tmp_path)
    fresh, _ = applied(make_model, name, "bert")
    load_trained(fresh, tmp_path)
    torch.testing.assert_close(outputs(fresh, batches), outputs(model, batches), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_save_load_and_merge(make_model: MakeModel, batches: Batches, tmp_path: Path, name: str, family: str) -> None:
    """What was saved loads onto the base model as the same function, and so does its merge, in float64."""
    model, method = applied(make_model, name, family)
    shake(model)
    if "calibrated" in method.forms:
        calibrate(model, batches)
    method.save(model, tmp_path)
    with method.using(model, method.deployed_form):
        expected = outputs(model, batches)
    assert not torch.allclose(expected, outputs(make_model(family), batches))
    loaded = method.load(make_model(family), tmp_path)
    torch.testing.assert_close(outputs(loaded, batches), expected, rtol=1e-4, atol=1e-5)
    loaded = method.load(make_model(family), tmp_path).double()
    form = method.deployed_form
    if name in UNMERGEABLE:
        with pytest.raises(FormError, match=f"{name} cannot be merged: "):
            method.merge(loaded, form)
        return
    if form == "dynamic":
        with pytest.raises(FormError, match="cannot be merged"):
            method.merge(loaded, form)
        return
    with method.using(loaded, form):
        expected = outputs(loaded, batches)
    merged = method.merge(loaded, form)
    assert not hasattr(merged, "peft_config")
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in make_model(family).named_parameters()}
    torch.testing.assert_close(outputs(merged, batches), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_forms(name: str) -> None:
    method = METHODS[name].bind({})
    if not name.startswith("aurora"):
        assert method.forms == (MERGED,)
    assert method.deployed_form in method.forms
    # what a run's recipe.yaml holds is read again as it is
    assert method.bind(method.options) == method
