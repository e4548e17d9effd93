"""The paper's parameter counts (Tables 1, 2 and 3), on models built from configs without weights."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel, LlamaConfig, RobertaConfig, ViTConfig

from aurora_lora import AuroraConfig
from aurora_lora.tuner import aurora_layers

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}

# our count with K = 8, the paper's figure
CASES = {
    "roberta-base": (RobertaConfig(), ["query", "value"], 74_208, 75_000),
    "roberta-large": (RobertaConfig(**LARGE), ["query", "value"], 197_568, 200_000),
    "vit-base": (ViTConfig(), ["query", "value", "q_proj", "v_proj"], 74_208, 74_000),
    "vit-large": (ViTConfig(**LARGE), ["query", "value", "q_proj", "v_proj"], 197_568, 197_000),
    "llama3-8b": (
        LlamaConfig(**LLAMA3_8B),
        ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        3_542_144,
        3_500_000,
    ),
}


@pytest.mark.parametrize("spline", ["channelwise", "summed"])
@pytest.mark.parametrize("name", CASES)
def test_counts(name: str, spline: str) -> None:
    config, target_modules, ours, paper = CASES[name]
    with torch.device("meta"):
        base = AutoModel.from_config(config)
        model = get_peft_model(base, AuroraConfig(target_modules=target_modules, spline=spline))
    assert all(layer.aurora_A["default"].weight.is_meta for _, layer in aurora_layers(model))
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == ours
    assert abs(trainable - paper) / paper < 0.015
