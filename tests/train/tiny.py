"""A model of a few thousand random weights and tasks of a few words: whole runs in a second, without network.

Imported by tests and by the processes that they start and kill.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    ViTConfig,
    ViTModel,
)

from aurora_lora.data import TASKS, SplitSizes, Task
from aurora_lora.data.prompts import alpaca, target, true_false
from aurora_lora.data.vision import split_images, with_rows

GOOD, BAD = ("good", "fine", "warm", "funny"), ("bad", "dull", "cold", "slow")
PLAIN = ("the", "a", "film", "plot", "was", "and", "very", "of", "scene", "actor")
ASKING = "it : , ? the correct answer is true false Answer format / question"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@contextmanager
def no_warning(message: str) -> Iterator[None]:
    """Within this context a warning of this pattern is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=message)
        yield


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


def _load_questions(sizes: SplitSizes, seed: int, form: str = "cloze") -> DatasetDict:
    """Is a text good? In the tiny language of one word for each token."""
    rng = random.Random(seed)
    splits = {}
    for name, size in (("test", sizes.test), ("validation", sizes.validation), ("train", sizes.train or 64)):
        examples = _examples(size, rng)
        asked = (lambda text: f"film : {text} , it was", ["fine", "bad"])
        if form == "instruction":
            asked = (lambda text: alpaca(true_false(f"{text} ?")), [target("true"), target("false")])
        columns = {
            "prompt": [asked[0](text) for text, _ in examples],
            "choices": [asked[1]] * len(examples),
            "label": [int(rating < 0) for _, rating in examples],
        }
        splits[name] = Dataset.from_dict(columns)
    return DatasetDict(splits)


QUESTIONS = Task(
    name="tiny-questions",
    description="A few random words, and what is thought of them.",
    kind="multiple-choice",
    labels=(),
    metric="accuracy",
    text_columns=("prompt", "choices"),
    source="made up",
    license="none",
    load=_load_questions,
    max_length=24,
    prompt_forms=("cloze", "instruction"),
)


def _load_images(sizes: SplitSizes, seed: int) -> DatasetDict:
    """Noise with a tinge of red, green or blue; the class names come with the data."""
    rng = np.random.default_rng(0)
    labels = [row % 3 for row in range(240)]
    images = rng.integers(0, 120, (240, 10, 8, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, :, label] += 60
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "green", "blue"])})
    columns = {"image": [*images], "label": labels}
    return split_images(
        {"train": with_rows(Dataset.from_dict(columns, features=features, split="train"))}, sizes, seed, "tiny-images"
    )


IMAGES = Task(
    name="tiny-images",
    description="Which colour is the noise?",
    kind="image-classification",
    labels=(),
    metric="accuracy",
    text_columns=(),
    source="made up",
    license="none",
    load=_load_images,
    sizes=SplitSizes(None, 30, 30),
    classes=3,
    augment="shift",
)


def register() -> None:
    """Add the tasks `tiny-sentiment`, `tiny-rating`, `tiny-questions` and `tiny-images`."""
    for name, regression in (("tiny-sentiment", False), ("tiny-rating", True)):
        TASKS[name] = _task(name, regression)
    TASKS[QUESTIONS.name] = QUESTIONS
    TASKS[IMAGES.name] = IMAGES


def save_model(folder: Path, dropout: float = 0.1, width: int = 16) -> Path:
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
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        initializer_range=0.5,  # large enough for the pooled output to differ from text to text
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def save_language_model(folder: Path, kind: str = "llama", *, tied: bool | None = None, width: int = 16) -> Path:
    """Write a random causal language model and its word tokenizer, which begins each text with `[CLS]`.

    Args:
        folder: a new or empty one.
        kind: "llama" or "gpt2".
        tied: whether the output layer has the weight of the embeddings; None is the architecture's default.
        width: of the Llama's hidden states.
    """
    words = list(dict.fromkeys([*SPECIAL, *PLAIN, *GOOD, *BAD, *ASKING.split()]))
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", ids["[CLS]"])])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(folder)
    tokens = {"bos_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"], "pad_token_id": ids["[PAD]"]}
    if tied is not None:
        tokens["tie_word_embeddings"] = tied
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":  # positions of its own, and Conv1D layers
            gpt2 = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=128, **tokens)
            GPT2LMHeadModel(gpt2).save_pretrained(folder)
        else:
            llama = LlamaConfig(
                vocab_size=len(words),
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * width,
                initializer_range=0.3,
                max_position_embeddings=128,
                **tokens,
            )
            LlamaForCausalLM(llama).save_pretrained(folder)
    return folder


VIT = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def save_vit(folder: Path) -> Path:
    """Write a random ViT for images of 8 by 8 pixels, and its image processor."""
    from transformers import ViTImageProcessor

    mean = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    ViTImageProcessor(size={"height": 8, "width": 8}, **mean).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**VIT, initializer_range=0.2), add_pooling_layer=False).save_pretrained(folder)
    return folder


class Stop(TrainerCallback):
    """Ends a run after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


QUERY_VALUE = r".*\.(query|value|q_proj|v_proj)"
"""The names of query and value in a ViT, of older and newer Transformers."""


def image_recipe(model: Path, **changes: object) -> dict[str, object]:
    """The values of a recipe on images that trains in about a second."""
    values: dict[str, object] = {
        "task": {"name": "tiny-images", "train_size": 96},
        "method": {"name": "aurora", "target_modules": QUERY_VALUE},
        "training": {"epochs": 2, "batch_size": 16, "eval_batch_size": 32, "learning_rate": 2e-2, "threads": 1},
    }
    return recipe(model, **{**values, **changes})


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
