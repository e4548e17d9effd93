"""A model of a few thousand random weights and tasks of a few words: whole runs in a second, without network.

Imported by tests and by the processes that they start and kill.
"""

import random
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from aurora_lora.tasks import TASKS, SplitSizes, Task

GOOD, BAD = ("good", "fine", "warm", "funny"), ("bad", "dull", "cold", "slow")
PLAIN = ("the", "a", "film", "plot", "was", "and", "very", "of", "scene", "actor")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def _examples(count: int, rng: random.Random) -> list[tuple[str, float]]:
    examples = []
    for _ in range(count):
        words = [rng.choice(PLAIN) for _ in range(rng.randint(2, 6))]
        judged = [rng.choice(GOOD + BAD) for _ in range(rng.choice((1, 3)))]
        rating = float(sum(1 if word in GOOD else -1 for word in judged))
        words += judged
        rng.shuffle(words)
        examples.append((" ".join(words), rating))
    return examples


def _load(sizes: SplitSizes, seed: int, *, regression: bool) -> DatasetDict:
    rng = random.Random(seed)
    splits = {}
    for name, size in (("test", sizes.test), ("validation", sizes.validation), ("train", sizes.train or 64)):
        examples = _examples(size, rng)
        labels = [rating if regression else int(rating > 0) for _, rating in examples]
        splits[name] = Dataset.from_dict({"text": [text for text, _ in examples], "label": labels})
    return DatasetDict(splits)


def _task(name: str, regression: bool) -> Task:
    return Task(
        name=name,
        description="A few random words.",
        kind="regression" if regression else "classification",
        labels=() if regression else ("negative", "positive"),
        metric="pearson" if regression else "accuracy",
        text_columns=("text",),
        source="made up",
        license="none",
        load=lambda sizes, seed: _load(sizes, seed, regression=regression),
    )


def register() -> None:
    """Add the tasks `tiny-sentiment` and `tiny-rating`."""
    for name, regression in (("tiny-sentiment", False), ("tiny-rating", True)):
        TASKS[name] = _task(name, regression)


def save_model(folder: Path, dropout: float = 0.1) -> Path:
    """Write a random BERT and its word tokenizer."""
    words = [*SPECIAL, *PLAIN, *GOOD, *BAD]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,  # large enough for the pooled output to differ from text to text
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def recipe(model: Path, **changes: object) -> dict[str, object]:
    """The values of a recipe that trains in about a second."""
    values: dict[str, object] = {
        "name": "tiny",
        "model": str(model),
        "task": {"name": "tiny-sentiment", "train_size": 64, "validation_size": 32, "test_size": 32},
        "method": {"name": "aurora", "target_modules": ["query", "value"]},
        "training": {"epochs": 3, "batch_size": 8, "eval_batch_size": 16, "learning_rate": 2e-2, "threads": 1},
        "calibration": {"examples": 32, "batch_size": 16},
    }
    return {**values, **changes}
