"""Quantised base layers: the forward pass, the merge with its rounding, and the way back bit for bit."""

import copy
import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig

bnb = pytest.importorskip("bitsandbytes")

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))

LAYERS = {
    "8bit": lambda: bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False),
    "nf4": lambda: bnb.nn.Linear4bit(64, 96, quant_type="nf4", compress_statistics=False),
    "nf4-double": lambda: bnb.nn.Linear4bit(64, 96, quant_type="nf4", compress_statistics=True),
    "fp4": lambda: bnb.nn.Linear4bit(64, 96, quant_type="fp4"),
}
# at most this share of the update does requantising cost
ROUNDING = {"8bit": 0.05, "nf4": 0.6, "nf4-double": 0.6, "fp4": 0.8}


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.lin = LAYERS[kind]()

    def forward(self, x):
        return self.lin(x)


def adapt(kind, **fields):
    model = get_peft_model(
        Net(kind).to("cpu"),  # which quantises
        AuroraConfig(target_modules=["lin"], **{"init_weights": False, **fields}),
    )
    return model, model.base_model.model.lin


def run(model, x=X):
    with torch.no_grad():
        return model(x)


@pytest.mark.filterwarnings("ignore:Merging into quantised weights")
@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_merge_and_back(kind, used_before):
    model, layer = adapt(kind, eval_form="static")
    if used_before:  # bitsandbytes moves its statistics at the first call
        model.train()(X.clone().requires_grad_(True)).sum().backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "aurora_" in name)
    model.eval()
    weight = layer.get_base_weight().clone()
    stored = layer.base_layer.weight.data.clone()
    model.merge_adapter()
    exact = weight.float() + layer.get_delta_weight("default")
    found = layer.get_base_weight().float()
    assert 0 < (found - exact).norm() < ROUNDING[kind] * (exact - weight.float()).norm()
    torch.testing.assert_close(run(model), X @ found.T + layer.base_layer.bias, atol=0.05, rtol=0.05)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_weight(), weight)
    assert torch.equal(layer.base_layer.weight.data, stored)
    before = run(model)
    assert torch.equal(run(copy.deepcopy(model)), before)


# ---------------------------------------------------------------- dequantised after the adapter was put on


@pytest.fixture
def bitsandbytes_llama(tmp_path):
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    kinds = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "8bit": {"load_in_8bit": True}}

    def make(kind):
        base = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**kinds[kind]))
        torch.manual_seed(1)
        config = AuroraConfig(target_modules=["q_proj", "v_proj"], init_weights=False, train_form="static")
        return get_peft_model(base, config)

    return make


@pytest.mark.filterwarnings("ignore:Merging into quantised weights")
@pytest.mark.parametrize("kind", ["nf4", "8bit"])
def test_the_merge_into_a_dequantised_base_is_exact(bitsandbytes_llama, kind):
    ids = torch.tensor([[1, 2, 3, 4]])
    dense, model = bitsandbytes_llama(kind), bitsandbytes_llama(kind)
    dense.dequantize()
    expected, reference = run(dense, ids).logits, copy.deepcopy(dense)
    model.dequantize()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    weight = dense.base_model.model.model.layers[0].self_attn.q_proj.get_base_layer().weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_weight(), weight + layer.get_delta_weight("default"))
    torch.testing.assert_close(run(model, ids).logits, expected)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_weight(), weight)
    assert torch.equal(run(model, ids).logits, expected)
    model.merge_adapter()
    for one in (reference, model):
        torch.testing.assert_close(run(one.merge_and_unload(), ids).logits, expected)


# ---------------------------------------------------------------- torchao, through Transformers
