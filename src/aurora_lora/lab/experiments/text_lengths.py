"""How long the texts of a task are, in tokens: what a plan needs to know of data that it does not load.

A batch is as long as its longest text. From a few quantiles of the lengths follows what a batch of n texts drawn at
random has on average, and the longest text of all, which decides the memory.
"""

from __future__ import annotations

import numpy as np

from ...training.recipe import Recipe

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
_POINTS = (np.arange(512) + 0.5) / 512


def limit(recipe: Recipe, positions: int | None = None) -> int:
    """The longest text that the recipe allows and a model of so many positions takes."""
    allowed = recipe.task.max_length or recipe.task.definition.max_length
    return min(allowed, positions) if positions else allowed


def longest(recipe: Recipe, positions: int | None = None) -> int:
    """The longest training text, after it is cut; of a task whose texts are not known, what the recipe allows."""
    known = LENGTHS.get(recipe.task.name)
    return min(known[-1], limit(recipe, positions)) if known else limit(recipe, positions)


def padded(recipe: Recipe, batch: int, positions: int | None = None) -> float:
    """Tokens of a text with the padding of its batch, on average over batches drawn at random."""
    known, most = LENGTHS.get(recipe.task.name), limit(recipe, positions)
    if known is None:
        return most
    return float(np.minimum(np.interp(_POINTS ** (1 / batch), QUANTILES, known), most).mean())
