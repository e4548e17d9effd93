"""Tiny random models under the names by which PEFT's tests load theirs from the hub, in a folder in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

REVISION = "0" * 40
VERSION = "1"
"""Of the models below: the folder is made anew when it changes."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    "OPT": {
        "vocab_size": 1024,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 4,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "max_position_embeddings": 100,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "GPT2": {
        "vocab_size": 1000,
        "n_embd": 32,
        "n_layer": 5,
        "n_head": 4,
        "n_positions": 512,
        "bos_token_id": 98,
        "eos_token_id": 98,
        "pad_token_id": 98,
    },
    "Llama": {
        "vocab_size": 1000,
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "Mistral": {
        "vocab_size": 1000,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "Qwen2": {
        "vocab_size": 1000,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "Bert": {
        "vocab_size": 1024,
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 40,
    },
    "Bart": {
        "vocab_size": 1024,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 4,
        "decoder_ffn_dim": 4,
        "max_position_embeddings": 100,
    },
    "T5": {
        "vocab_size": 1100,
        "d_model": 32,
        "d_ff": 40,
        "d_kv": 8,
        "num_layers": 5,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
}
SIZES = {
    **SIZES,
    "GPTJ": {**SIZES["GPT2"], "rotary_dim": 4},
    "Gemma3": {**SIZES["Mistral"], "head_dim": 8},
    "Roberta": {**SIZES["Bert"], "max_position_embeddings": 512},
    "Deberta": {
        **SIZES["Bert"],
        "relative_attention": True,
        "position_biased_input": True,
        "pos_att_type": ["c2p", "p2c"],
    },
    "DebertaV2": SIZES["Bert"],
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}

# name in the hub: architecture, class, and what differs from the size of the architecture
MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPT", "OPTForCausalLM", {}),
    # test_quantization counts its layers
    "peft-internal-testing/opt-125m": (
        "OPT",
        "OPTForCausalLM",
        {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 12},
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2", "GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2", "GPT2LMHeadModel", {}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2", "GPT2LMHeadModel", {}),
    "gpt2": ("GPT2", "GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJ", "GPTJForCausalLM", {}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("Llama", "LlamaForCausalLM", {}),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("Llama", "LlamaForSequenceClassification", {}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("Mistral", "MistralForCausalLM", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2", "Qwen2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3", "Gemma3ForCausalLM", {}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5", "T5ForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("Bart", "BartForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-BertModel": ("Bert", "BertModel", {}),
    "bert-base-uncased": ("Bert", "BertForSequenceClassification", {}),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("Bert", "BertForSequenceClassification", {}),
    "peft-internal-testing/tiny-random-RobertaModel": ("Roberta", "RobertaModel", {}),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "Roberta",
        "RobertaForSequenceClassification",
        {},
    ),
    "peft-internal-testing/tiny-random-DebertaModel": ("Deberta", "DebertaModel", {}),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2", "DebertaV2Model", {}),
}


def fill(home: Path) -> None:
    """Make the models below `home/hub`, laid out as the hub's cache, unless they are there."""
    mark = home / "version"
    if mark.exists() and mark.read_text() == VERSION:
        return
    shutil.rmtree(home, ignore_errors=True)
    for name, (architecture, model_class, changes) in MODELS.items():
        config_class = getattr(transformers, CONFIGS.get(architecture, f"{architecture}Config"))
        config = config_class(**{**SIZES[architecture], **changes})
        make: Callable[[Any], PreTrainedModel] = getattr(transformers, model_class)
        torch.manual_seed(0)
        make(config).save_pretrained(snapshot(home, name))
    mark.write_text(VERSION)


def snapshot(home: Path, name: str) -> Path:
    """A new folder for the files of a model, which the hub's client finds under its name."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(REVISION)
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder
