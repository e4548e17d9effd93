"""torch.compile with Inductor, on the CPU: a whole training step, and what is left of sigma in the compiled code."""

import shutil

import pytest
import torch
from peft import get_peft_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig
from aurora_lora.ops import update

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler"),
]


@pytest.fixture(autouse=True)
def fresh():
    """No graphs and no counts of other tests."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def llama(**fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return get_peft_model(base, AuroraConfig(target_modules=targets, init_weights=False, **fields)).train()


def train(model, compiled):
    """Three steps; the losses, and the adapter in the end."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def step(ids):
        return model(input_ids=ids, labels=ids).loss

    step = torch.compile(step, fullgraph=True) if compiled else step
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        loss = step(torch.randint(0, 50, (2, 12), generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("operators", "fields"),
    [(False, {}), (True, {"train_form": "static", "spline": "summed", "skip": True})],
    ids=["fused by Inductor", "as operators"],
)
def test_a_training_step_is_one_graph_and_the_same(monkeypatch, operators, fields):
    """Forward, loss and backward compiled as a whole, against eager mode."""
    if operators:
        monkeypatch.setattr(update, "triton_serves", lambda *_: True)  # as on CUDA; here on their CPU side
    losses, weights = train(llama(**fields), compiled=False)
    compiled_losses, compiled_weights = train(llama(**fields), compiled=True)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(compiled_losses, losses)
    assert compiled_weights.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(compiled_weights[name], weight, rtol=1e-4, atol=1e-5)
