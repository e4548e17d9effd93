"""How many examples a task has and how long its texts are, in tokens: what a plan needs to know of the data.

A batch is as long as its longest text. From a few quantiles of the lengths, or from the lengths in loaded data, follows
what a batch of n texts drawn at random has on average, and the longest text of all, which decides the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...train.data import Data
from ...train.recipe import Recipe

QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1)
LENGTHS = {
    "cola": (4, 6, 8, 10, 13, 17, 19, 26, 36, 47),
    "sst2": (3, 6, 7, 11, 19, 28, 34, 46, 59, 71),
    "mrpc": (20, 38, 46, 56, 66, 76, 83, 95, 107, 111),
    "stsb": (12, 18, 20, 25, 33, 55, 66, 87, 104, 129),
    "qnli": (16, 33, 40, 51, 64, 80, 93, 124, 176, 512),
    "rte": (16, 36, 46, 60, 91, 144, 166, 208, 268, 302),
    "commonsense": (66, 88, 93, 103, 140, 212, 235, 254, 256, 300),
    "movie-sentiment": (4, 13, 19, 26, 34, 42, 47, 55, 63, 66),
    "movie-rating": (4, 13, 19, 26, 34, 42, 47, 55, 63, 66),
    "siqa": (21, 28, 30, 33, 37, 41, 45, 54, 65, 66),
    "wikihow-goal": (16, 20, 22, 25, 29, 33, 38, 49, 60, 65),
    "strategyqa": (12, 15, 17, 19, 22, 24, 26, 29, 34, 38),
    "winowhy": (28, 37, 41, 46, 53, 62, 66, 77, 96, 111),
}
"""Tokens of a training text, by task, at `QUANTILES`. Counted on published copies of the data with the tokenizer of
SmolLM2, which cuts English much as those of RoBERTa and LLaMA3 do, or, of the packaged film reviews, with MiniLM's.
CoLA's are rough; of the longest of QNLI the limit is taken; HellaSwag's share of `commonsense` is such that batches of
16 have 228 tokens."""
LONGEST_HELD_OUT = {"commonsense": 1000}
"""Tokens of the longest held-out text, about, where it is far longer than those of training: passages of BoolQ."""
CHOICES = 5
"""Answers of a question of ARC; of the other commonsense tasks a question has up to four."""
_POINTS = (np.arange(512) + 0.5) / 512


@dataclass(frozen=True)
class Sizes:
    """What a plan takes of data that are loaded, in place of what the recipe and the tables here say.

    Args:
        examples: of each split, as they are trained on: of packed conversations, rows.
        lengths: of each split, tokens of its texts, see `Data.lengths`.
        labels: outputs of the model's head.
        choices: of a question, at most; None where there are no questions.
        choice_tokens: of the longest choice of any.
    """

    examples: Mapping[str, int]
    lengths: Mapping[str, Sequence[int]]
    labels: int
    choices: int | None = None
    choice_tokens: int | None = None

    @classmethod
    def of(cls, data: Data) -> Sizes:
        """The sizes of a recipe's data."""
        examples = {name: len(split) for name, split in data.splits.items()}
        labels = len(data.labels) or data.task.num_labels
        if data.scored is None:
            return cls(examples, data.lengths, labels)
        questions = (split[place] for split in data.splits.values() for place in range(len(split)))
        tokens = max(len(ids) for one in questions for ids in one["choices"])
        return cls(
            examples,
            data.lengths,
            labels,
            max(len(one["choices"]) for split in data.splits.values() for one in (split[i] for i in range(len(split)))),
            tokens,
        )


def examples(recipe: Recipe, split: str, sizes: Sizes | None = None) -> int | None:
    """How many examples a split has; None where only the data itself can tell."""
    if sizes is not None:
        return sizes.examples[split]
    task, section = recipe.task.definition, recipe.task
    wanted = {"train": section.train_size, "validation": section.validation_size}.get(split, section.test_size)
    if wanted is not None:
        return wanted
    return task.train_examples if split == "train" else task.held_out.get(split)


def choices(recipe: Recipe, sizes: Sizes | None = None) -> tuple[int, int]:
    """How many answers a question has, at most, and the tokens of one; without data, `CHOICES` answers where the task
    does not say, and the tokens that the kind names."""
    if sizes is not None and sizes.choices and sizes.choice_tokens:
        return sizes.choices, sizes.choice_tokens
    return recipe.task.definition.classes or CHOICES, recipe.task.kind.learned_tokens or 1


def limit(recipe: Recipe, positions: int | None = None) -> int:
    """The longest text that the recipe allows and a model of so many positions takes."""
    allowed = recipe.task.max_length or recipe.task.definition.max_length
    return min(allowed, positions) if positions else allowed


def longest(recipe: Recipe, positions: int | None = None, sizes: Sizes | None = None) -> int:
    """The longest training text, after it is cut; of a task whose texts are not known, what the recipe allows."""
    known = _known(recipe, "train", sizes)
    return min(max(known), limit(recipe, positions)) if known else limit(recipe, positions)


def longest_scored(recipe: Recipe, positions: int | None = None, sizes: Sizes | None = None) -> int:
    """The longest held-out text, as `longest`; questions are not cut when they are scored. Without data, held-out texts
    are taken to be as long as those of training, but for `LONGEST_HELD_OUT`."""
    texts = filter(None, (_known(recipe, split, sizes) for split in ("validation", *recipe.test_sets)))
    found, most = max(map(max, texts), default=None), limit(recipe, positions)
    if sizes is None and found is not None:
        found = max(found, LONGEST_HELD_OUT.get(recipe.task.name, 0))
    if found is not None and recipe.task.kind.has_choices:
        most = positions or found
    return most if found is None else min(found, most)


def padded(
    recipe: Recipe, batch: int, positions: int | None = None, sizes: Sizes | None = None, split: str = "train"
) -> float:
    """Tokens of a text with the padding of its batch, on average over batches drawn at random."""
    known, most, points = _known(recipe, split, sizes), limit(recipe, positions), _POINTS ** (1 / batch)
    if not known:
        return most
    of_batches = np.interp(points, QUANTILES, known) if sizes is None else np.quantile(known, points)
    return float(np.minimum(of_batches, most).mean())


def _known(recipe: Recipe, split: str, sizes: Sizes | None) -> Sequence[int] | None:
    """The lengths in data that are loaded, in any order; else the task's at `QUANTILES`."""
    return LENGTHS.get(recipe.task.name) if sizes is None else sizes.lengths.get(split)
