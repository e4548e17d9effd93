"""Tiny random models under the names by which PEFT's tests load theirs from the hub, in a folder in its place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

REVISION = "0" * 40
VERSION = "4"
"""Of the models below: the folder is made anew when it changes."""

# fmt: off
SIZES: dict[str, dict[str, Any]] = {
    "OPT": {"vocab_size": 1024, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 4, "num_hidden_layers": 5,
            "num_attention_heads": 4, "max_position_embeddings": 100, "bos_token_id": 2, "eos_token_id": 2,
            "pad_token_id": 1},
    "GPT2": {"vocab_size": 1000, "n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 512, "bos_token_id": 98,
             "eos_token_id": 98, "pad_token_id": 98},
    "Llama": {"vocab_size": 1000, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
              "pad_token_id": 0},
    "Mistral": {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2},
    "Qwen2": {"vocab_size": 1000, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2},
    "Bert": {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
             "intermediate_size": 40},
    "Bart": {"vocab_size": 1024, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4, "max_position_embeddings": 100},
    "T5": {"vocab_size": 1100, "d_model": 32, "d_ff": 40, "d_kv": 8, "num_layers": 5, "num_heads": 4,
           "decoder_start_token_id": 0},
    "Bloom": {"vocab_size": 1000, "hidden_size": 32, "n_layer": 5, "n_head": 4},
    "FalconMamba": {"vocab_size": 1000, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "CLIPText": {"vocab_size": 1000, "hidden_size": 32, "projection_dim": 32, "intermediate_size": 40,
                 "num_hidden_layers": 5, "num_attention_heads": 4, "max_position_embeddings": 77, "bos_token_id": 0,
                 "eos_token_id": 1},
    "ResNet": {"num_channels": 3, "embedding_size": 10, "hidden_sizes": [10, 20, 30, 40], "depths": [1, 1, 2, 1],
               "num_labels": 3},
}
SIZES |= {
    "GPTJ": {**SIZES["GPT2"], "rotary_dim": 4},
    "Gemma3": {**SIZES["Mistral"], "head_dim": 8},
    "Roberta": {**SIZES["Bert"], "max_position_embeddings": 512},
    "Deberta": {**SIZES["Bert"], "relative_attention": True, "position_biased_input": True,
                "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2": SIZES["Bert"],
    "GPTNeoX": SIZES["Bert"],
    "NemotronH": {**SIZES["Mistral"], "layers_block_type": ["mamba", "attention"], "num_hidden_layers": 2,
                  "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
}
# fmt: on
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
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("Llama", "LlamaForCausalLM", {}),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("Bloom", "BloomForCausalLM", {}),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoX", "GPTNeoXForCausalLM", {}),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("Llama", "LlamaForSequenceClassification", {}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("Mistral", "MistralForCausalLM", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2", "Qwen2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3", "Gemma3ForCausalLM", {}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5", "T5ForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("T5", "T5ForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-t5": ("T5", "T5ForConditionalGeneration", {}),
    "google/flan-t5-small": ("T5", "T5ForConditionalGeneration", {}),
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
    "tiiuae/falcon-mamba-tiny-dev": ("FalconMamba", "FalconMambaForCausalLM", {}),
    "trl-internal-testing/tiny-NemotronHForCausalLM-nano": ("NemotronH", "NemotronHForCausalLM", {}),
    "peft-internal-testing/tiny-clip-text-2": ("CLIPText", "CLIPTextModelWithProjection", {}),
    "peft-internal-testing/tiny-random-ResNetForImageClassification": ("ResNet", "ResNetForImageClassification", {}),
}


def fill(home: Path) -> None:
    """Make the models below `home/hub`, laid out as the hub's cache, unless they are there."""
    mark = home / "version"
    if mark.exists() and mark.read_text() == VERSION:
        return
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(home, ignore_errors=True)
    for name, (architecture, model_class, changes) in MODELS.items():
        make(architecture, model_class, changes).save_pretrained(snapshot(home, name))
    image_processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0)
    image_processor.save_pretrained(snapshot(home, "peft-internal-testing/tiny-random-ResNetForImageClassification"))
    tokenizer().save_pretrained(snapshot(home, "trl-internal-testing/tiny-random-LlamaForCausalLM"))
    stable_diffusion().save_pretrained(snapshot(home, "hf-internal-testing/tiny-sd-pipe"))
    mark.write_text(VERSION)


def make(architecture: str, model_class: str, changes: Mapping[str, Any]) -> PreTrainedModel:
    """A random model, the same one each time."""
    config = getattr(transformers, CONFIGS.get(architecture, f"{architecture}Config"))
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, model_class)(config(**{**SIZES[architecture], **changes}))
    return model


def tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One that knows digits."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({str(i): i for i in range(10)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="0", pad_token="0")


def stable_diffusion() -> Any:
    """A Stable Diffusion pipeline of tiny random models, for images of 16 by 16 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DConditionModel(
        **blocks,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        **blocks,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    characters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *characters])}
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=make("CLIPText", "CLIPTextModel", {}),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def snapshot(home: Path, name: str) -> Path:
    """The folder for the files of a model, which the hub's client finds under its name."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / REVISION
    for each in (root / "refs", folder):
        each.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(REVISION)
    return folder
