"""The trained parameters of each method on the paper's models, built from their configs without weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, RobertaConfig

from aurora_lora.methods import METHODS, count_parameters

BASE = RobertaConfig()
LARGE = RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
SEVEN = [*FIVE, "o_proj", "gate_proj"]
QUERY_VALUE = 24 * 8 * (768 + 768)  # LoRA's r = 8 on RoBERTa base: 294,912

# method, options, model: our count; the figure that the paper's tables (1 and 2) print, if it has one
CASES = {
    "bitfit": ({}, BASE, 102_144, "0.1M"),
    "lora": ({}, BASE, QUERY_VALUE, "0.3M"),
    "dora": ({}, BASE, QUERY_VALUE + 24 * 768, "0.3M"),
    "dylora": ({}, BASE, QUERY_VALUE, "0.3M"),
    # these two shrink as they train; what the paper prints is what is left: see below
    "adalora": ({"target_modules": ["query", "value"]}, BASE, 24 * 12 * (768 + 768 + 1), None),
    "lora-drop": ({}, BASE, QUERY_VALUE, None),
    "fourierft": ({}, BASE, 24_000, "0.024M"),
    "moslora": ({}, BASE, QUERY_VALUE + 24 * 64, None),
    "lora-ga": ({}, BASE, QUERY_VALUE, None),
    "hira": ({"target_modules": ["query", "value"]}, BASE, 4 * QUERY_VALUE, None),  # r = 32
    "sine-lora": ({}, BASE, QUERY_VALUE, None),
    "loran": ({}, BASE, QUERY_VALUE, None),
    "loda": ({}, BASE, QUERY_VALUE + 24 * 2 * 64, None),
    "neat": ({"depth": 1}, BASE, QUERY_VALUE + 24 * 2 * 64, None),
    "vera": ({}, BASE, 24 * (256 + 768), None),
    "adapter-d": ({}, BASE, 9 * (2 * 64 * 768 + 64 + 768), "0.9M"),
    "adapter-p": ({}, LARGE, 24 * (2 * 64 * 1024 + 64 + 1024), "3M"),
    "adapter-h": ({"train_norms": False}, LARGE, 48 * (2 * 64 * 1024 + 64 + 1024), "6M"),
    "milora": ({"r": 32, "target_modules": FIVE}, LLAMA3_8B, 56_623_104, "56.6M"),
    "pissa": ({"r": 32, "target_modules": SEVEN}, LLAMA3_8B, 83_886_080, "83.8M"),
}


def agrees(count: int, printed: str) -> bool:
    """Whether the count, rounded or cut to as many digits, is what is printed (the paper cuts 83.886 to 83.8)."""
    number = printed.removesuffix("M")
    unit = 10.0 ** -(len(number.partition(".")[2]))
    return abs(count / 1e6 - float(number)) < unit


@pytest.mark.parametrize("name", CASES)
def test_count(name: str) -> None:
    options, config, expected, printed = CASES[name]
    kind = AutoModelForSequenceClassification if config is not LLAMA3_8B else AutoModelForCausalLM
    with torch.device("meta"):
        model = METHODS[name].bind(options).apply(kind.from_config(config), "SEQ_CLS")
    assert count_parameters(model).adapter == expected
    assert printed is None or agrees(expected, printed)


def test_the_paper_prints_what_is_left_of_adalora_and_lora_drop() -> None:
    """0.3M is AdaLoRA's budget at the end, of the ranks that it begins with; 0.15M is half of LoRA-drop's layers."""
    options = METHODS["adalora"].bind({"target_modules": ["query", "value"]}).options
    begun = CASES["adalora"][2]
    assert not agrees(begun, "0.3M")
    assert agrees(begun * options["target_r"] // options["init_r"], "0.3M")
    assert not agrees(QUERY_VALUE, "0.15M")
    assert agrees(QUERY_VALUE // 2, "0.15M")
