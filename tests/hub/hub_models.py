"""The models of the paper as repositories of the stand-in hub: their architectures, tokenizers and files, but small.

What is kept of the real repositories is what loading depends on: which files there are and in which format, the classes
and options of the tokenizers, special tokens that are missing, generation settings that sample.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTModel,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))

import tiny_pipeline

from aurora_lora.data.prompts import alpaca

LLAMA = "meta-llama/Meta-Llama-3-8B"
WORDS = (
    "Please answer the following question with true or false. Answer format: true/false. The correct answer is",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Response: Please choose the correct solution ending option to complete the given sentence",
    "A man plays a guitar. The firm said profits rose. Which is a metal? iron wood solution1 answer2 ending3 option1",
)
SIDE = 16
"""Pixels of the images that the vision models take."""
LAYERS = {"base": 4, "large": 5}
"""Adapter-D leaves the first three without an adapter."""
ANSWER = ("true", "solution1", "answer3", "ending4", "option2")
"""What the language model writes after every prompt: so it has, of each test set, the questions with that answer."""


NEEDLESS = {
    "FacebookAI/roberta-base": ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"),
    "google/vit-base-patch16-224-in21k": ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"),
    LLAMA: ("original/consolidated.00.pth", "original/tokenizer.model"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sd_xl_base_1.0.safetensors", "unet/model.onnx_data"),
    "madebyollin/sdxl-vae-fp16-fix": ("sdxl_vae.safetensors", "diffusion_pytorch_model.bin"),
}
"""The same weights in other forms, gigabytes of them: nothing may download these."""


def write(root: Path) -> None:
    """Write all of them to `root/models`."""
    folder = root / "models"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for size, layers in LAYERS.items():
            _roberta(folder / f"FacebookAI/roberta-{size}", layers)
            _vit(folder / f"google/vit-{size}-patch16-224-in21k", layers)
        _llama(folder / LLAMA)
        _diffusion(folder)
    for name, files in NEEDLESS.items():
        for file in files:
            (folder / name / file).parent.mkdir(exist_ok=True)
            (folder / name / file).write_bytes(b"not to be loaded")


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _byte_pairs(special: list[str], size: int) -> Tokenizer:
    """Byte-level, as both tokenizers are, with pieces that are learned from a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# ---------------------------------------------------------------- RoBERTa


def _roberta(folder: Path, layers: int) -> None:
    """A masked language model with its vocabulary, merges and tokenizer.json."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _byte_pairs(special, 400)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    _dump(folder / "tokenizer_config.json", {"model_max_length": 512})
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        num_hidden_layers=layers,
        type_vocab_size=1,
        hidden_size=32,  # FourierFT's 1,000 frequencies fit into a square of them
        intermediate_size=32,
        num_attention_heads=2,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    _forget_version(folder / "config.json")


def _forget_version(path: Path) -> None:
    """As in files of earlier versions of Transformers, which did not write theirs, or the dtype."""
    values = json.loads(path.read_text())
    for key in ("transformers_version", "dtype"):
        values.pop(key, None)
    _dump(path, values)


# ---------------------------------------------------------------- LLaMA3


def _llama(folder: Path) -> None:
    """Four shards in bfloat16, no token to pad with, and generation settings that sample up to 4,096 tokens."""
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = _byte_pairs([], 420)
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (begin, end)])
    ids = {token: tokenizer.token_to_id(token) for token in (begin, end)}
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, ids[begin])]
            ),
        ]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    shown: dict[str, Any] = {
        "bos_token": begin,
        "eos_token": end,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _dump(folder / "tokenizer_config.json", shown)
    _dump(folder / "special_tokens_map.json", {"bos_token": begin, "eos_token": end})
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,  # MiLoRA's 32 components fit into each layer
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=8192,
        bos_token_id=ids[begin],
        eos_token_id=ids[end],
        tie_word_embeddings=False,
        initializer_range=1e-3,
    )
    model = LlamaForCausalLM(config)
    _teach(model, tokenizer)
    model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=sum(p.nbytes for p in model.parameters()) // 4)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
    tokens = {"bos_token_id": ids[begin], "eos_token_id": ids[end]}
    _dump(folder / "generation_config.json", {"_from_model_config": True, **tokens, **sampling})


def _teach(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Let the last token of a prompt call for `ANSWER`, token by token, and for the end after it.

    The layers add next to nothing to the embedding of a token, and the output layer turns it into the next one's.
    """
    start = tokenizer.encode(alpaca("?")).ids[-1]
    answer = tokenizer.encode(" ".join(ANSWER), add_special_tokens=False).ids
    tokens = [start, *answer, tokenizer.token_to_id("<|end_of_text|>")]
    assert len(set(tokens)) == len(tokens)  # or one of them would be followed by two
    with torch.no_grad():
        embedding, output = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.normal_()
        for token, following in pairwise(tokens):
            output[following] = embedding[token] / 3


# ---------------------------------------------------------------- vision transformers


def _vit(folder: Path, layers: int, mean: tuple[float, ...] = (0.5, 0.5, 0.5)) -> None:
    """The body, with a pooler, and an image processor in the form of 2021."""
    folder.mkdir(parents=True)
    config = ViTConfig(
        image_size=SIDE,
        patch_size=SIDE // 2,
        num_hidden_layers=layers,
        hidden_size=104,  # FourierFT's 10,000 frequencies fit into a square of them
        intermediate_size=64,
        num_attention_heads=2,
    )
    ViTModel(config).save_pretrained(folder)
    _forget_version(folder / "config.json")
    _processor(folder, "ViTFeatureExtractor", 2, mean)


def _pickle(folder: Path, pull_request: int) -> None:
    """On main, the weights as PyTorch's own file alone; as they were on the branch of a pull request."""
    shutil.copytree(folder, folder.with_name(f"{folder.name}@refs%2Fpr%2F{pull_request}"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _processor(folder: Path, kind: str, resample: int, mean: tuple[float, ...], **more: Any) -> None:
    values = {"do_normalize": True, "do_resize": True, "feature_extractor_type": kind, "image_mean": mean}
    values |= {"image_std": [0.5, 0.5, 0.5], "resample": resample, "size": SIDE}
    _dump(folder / "preprocessor_config.json", {**values, **more})


# ---------------------------------------------------------------- Stable Diffusion XL, and what scores its images


def _diffusion(folder: Path) -> None:
    """The pipeline in fp32 and fp16, a second autoencoder, and CLIP and DINO, which are pickles on main."""
    sdxl = folder / "stabilityai/stable-diffusion-xl-base-1.0"
    tiny_pipeline.save_pipeline(sdxl)
    for path in list(sdxl.rglob("*.safetensors")):
        _halve(path, path.with_suffix(".fp16.safetensors"))
    vae = folder / "madebyollin/sdxl-vae-fp16-fix"
    vae.mkdir(parents=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (vae / name).write_bytes((sdxl / "vae" / name).read_bytes())
    clip = folder / "openai/clip-vit-base-patch32"
    tiny_pipeline.save_clip(clip)
    cut = {"crop_size": SIDE, "do_center_crop": True}
    _processor(clip, "CLIPFeatureExtractor", 3, (0.48, 0.46, 0.41), **cut)
    (clip / "processor_config.json").unlink(missing_ok=True)
    _pickle(clip, 15)
    dino = folder / "facebook/dino-vits16"
    _vit(dino, 2, mean=(0.485, 0.456, 0.406))
    _pickle(dino, 3)


def _halve(path: Path, target: Path) -> None:
    save_file({name: value.half() for name, value in load_file(path).items()}, target, metadata={"format": "pt"})
