"""Film-review sentences from the Python package index, each with the mean of 15 to 29 human ratings."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..extras import extra
from .fetch import Archive, fetch
from .task import SplitSizes, Task, check_size, place

if TYPE_CHECKING:
    import datasets

_FILE = "movieReviewSnippets_GroundTruth.txt"
MOVIE_SENTENCES = Archive(
    requirement="vaderSentiment==0.5",
    kind="sdist",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    inner="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    members={f"hutto_ICWSM_2014/{_FILE}": _FILE, "hutto_ICWSM_2014/_README_.txt": "README.txt"},
    description="film-review sentences with human ratings",
    megabytes=2.4,
    license="MIT",
)
CLEAR = 0.5
"""A mean nearer to zero than this is no clear sentiment."""


@dataclass(frozen=True)
class RatedSentence:
    """A sentence and its mean human rating, from -4 (very negative) to 4 (very positive)."""

    text: str
    rating: float
    key: str
    """The normalised text: equal for sentences that count as the same."""

    @property
    def is_clear(self) -> bool:
        return abs(self.rating) >= CLEAR


_SPACES = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()})


def normalise(text: str) -> str:
    """What decides that two sentences are the same: their words, whatever the case, accents' encoding and punctuation.

    The splits of packaged tasks come from it; own data has a key that tells symbols and marks on letters apart.

    >>> normalise("...A  pretentious MESS!") == normalise("A pretentious mess")
    True
    """
    if text.isascii():  # the same, in a third of the time
        return " ".join(text.lower().translate(_SPACES).split()) or text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split()) or folded


def read_sentences(path: Path) -> list[RatedSentence]:
    """Reads `id <tab> rating <tab> text` lines, each sentence once.

    The same sentence under two ids has been rated twice: it becomes one sentence with the mean of the two ratings. If
    those contradict each other the mean falls near zero, where `movie-sentiment` drops it.

    Raises:
        UserError: a line that does not have this form, or none at all.
    """
    found: dict[str, tuple[str, list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        try:
            _, rating_field, text = fields
            rating = float(rating_field)
        except ValueError:
            rating, text = math.nan, ""
        if not abs(rating) <= 4 or not text.strip():
            raise UserError(
                f"{path}, line {number}: expected id, rating (-4 to 4) and text, separated by tabs; got {line[:60]!r}"
            )
        found.setdefault(normalise(text), (text.strip(), []))[1].append(rating)
    if not found:
        raise UserError(f"{path} holds no sentences")
    return [RatedSentence(text, math.fsum(r) / len(r), key) for key, (text, r) in found.items()]


def split_sentences(
    sentences: Sequence[RatedSentence], sizes: SplitSizes, split_seed: int, *, clear_only: bool
) -> dict[str, list[RatedSentence]]:
    """Train, validation and test: no sentence in two of them.

    The seed alone fixes one order of the sentences (a hash: no library's generator can change it). Test is the head of
    that order, validation follows, and train is taken from the tail. So test depends on no other size, and a smaller
    train is the start of a larger one.

    Where test and validation end is counted in clear sentences, which every task here has, whether or not the task
    uses the others: with the same seed and sizes, a held-out sentence of one task is in no other split of another.

    Args:
        sentences: each sentence once.
        sizes: how many for each split.
        split_seed: chooses the order.
        clear_only: leave out the sentences without a clear sentiment.

    Raises:
        UserError: more sentences asked for than there are.
    """
    order = sorted(sentences, key=lambda one: place(one.key, split_seed))
    clear = [place for place, one in enumerate(order) if one.is_clear]
    validation_size, test_size = sizes.held_out()
    held_out = test_size + validation_size
    if held_out >= len(clear):
        raise sizes.nothing_left(len(clear), "sentences to hold out from")
    test_end, validation_end = clear[test_size - 1] + 1, clear[held_out - 1] + 1
    pools = {
        "train": order[validation_end:][::-1],
        "validation": order[test_end:validation_end],
        "test": order[:test_end],
    }
    splits = {}
    for name, pool in pools.items():
        usable = [one for one in pool if one.is_clear or not clear_only]
        splits[name] = usable[: check_size(name, getattr(sizes, name), len(usable), "sentences that are left")]
    return splits


def _load(labels: tuple[str, ...], sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    """In memory: nothing is written to the cache of `datasets`."""
    with extra("train"):
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    sentences = read_sentences(fetch(MOVIE_SENTENCES) / _FILE)
    kind = ClassLabel(names=list(labels)) if labels else Value("float32")
    features = Features({"text": Value("string"), "label": kind})
    made = {}
    for name, split in split_sentences(sentences, sizes, split_seed, clear_only=bool(labels)).items():
        learned: list[Any] = [int(one.rating > 0) if labels else one.rating for one in split]
        made[name] = Dataset.from_dict({"text": [one.text for one in split], "label": learned}, features=features)
    return DatasetDict(made)


def _task(name: str, description: str, kind: str, labels: tuple[str, ...], metric: str, train_examples: int) -> Task:
    return Task(
        name=name,
        description=description,
        kind=kind,
        labels=labels,
        metric=metric,
        text_columns=("text",),
        source="film-review sentences rated by people, Hutto and Gilbert (ICWSM 2014), from the package vaderSentiment "
        "0.5",
        license="MIT",
        load=functools.partial(_load, labels),
        group="packaged",
        train_examples=train_examples,
        never_after=("sst2",),
    )


MOVIE_SENTIMENT = _task(
    "movie-sentiment",
    "Is a film-review sentence negative or positive? (sign of the mean of 15 to 29 human ratings)",
    *("classification", ("negative", "positive"), "accuracy", 7_070),
)
MOVIE_RATING = _task(
    "movie-rating",
    "How positive is a film-review sentence? (mean of 15 to 29 human ratings, -4 to 4)",
    *("regression", (), "pearson", 7_430),  # by split seed 0; how many are unclear differs by some
)
