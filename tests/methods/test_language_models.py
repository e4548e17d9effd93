"""Causal language models: no new head, tied embeddings, Conv1D, and where adapters go in decoder layers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from aurora_lora.methods import METHODS, Method

MakeModel = Callable[[str], Any]
Batches = list[dict[str, torch.Tensor]]
TIED = ("llama-lm", "gpt2")


def apply(make_model: MakeModel, name: str, family: str, **options: Any) -> tuple[Any, Method]:
    method = METHODS[name].bind(options)
    return method.apply(make_model(family), "CAUSAL_LM"), method


def outputs(model: nn.Module, batches: Batches) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batches[0]).logits


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        ("linear-probe", "llama-lm", "linear-probe has nothing to train in a LlamaForCausalLM: it has no new head"),
        ("linear-probe", "gpt2", "linear-probe has nothing to train in a GPT2LMHeadModel"),
        ("bitfit", "llama-lm", "bitfit trains the biases, and LlamaForCausalLM has none"),
        ("neat", "gpt2", "neat: PEANuT does not support target modules of type"),
    ],
)
def test_refused(make_model: MakeModel, name: str, family: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        apply(make_model, name, family)


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("name", ["lora", "dora", "moslora", "sine-lora", "aurora-paper-s"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_adapted_output_layer_comes_apart_from_the_embeddings(
    make_model: MakeModel, batches: Batches, tmp_path: Path, name: str, family: str
) -> None:
    """A merge into it leaves the embeddings as they were, also after saving and loading."""
    model, _ = apply(make_model, name, family, target_modules=["lm_head"])
    base = make_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = outputs(model, batches)
    merged = METHODS[name].merge(model, METHODS[name].bind({}).deployed_form)
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    torch.testing.assert_close(outputs(merged, batches), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(loaded, batches), expected, rtol=1e-4, atol=1e-4)


def test_modules_trained_whole_are_loaded_in_float32(make_model: MakeModel, tmp_path: Path) -> None:
    """`norm` is to PEFT also the end of `input_layernorm` and `post_attention_layernorm`."""
    method = METHODS["lora"].bind({"r": 2, "modules_to_save": ["norm"]})
    model = method.apply(make_model("llama-lm").to(torch.bfloat16), "CAUSAL_LM")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(".modules_to_save." in name for name in trained) == 3 * 2 + 1
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter))
    method.save(model, tmp_path)
    loaded = dict(method.load(make_model("llama-lm").to(torch.bfloat16), tmp_path).named_parameters())
    for name, parameter in trained.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], parameter)
