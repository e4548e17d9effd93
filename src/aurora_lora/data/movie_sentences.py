"""Film-review sentences from the Python package index, each with the mean of 15 to 29 human ratings."""

from __future__ import annotations

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
from .order import place
from .task import SplitSizes, Task, check_size

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

# A mean nearer to zero than this is no clear sentiment.
CLEAR = 0.5


@dataclass(frozen=True)
class RatedSentence:
    """A sentence and its mean human rating, from -4 (very negative) to 4 (very positive)."""

    text: str
    rating: float
    key: str  # the normalised text: equal for sentences that count as the same

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


def _load_sentiment(sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    with extra("train"):
        from datasets import ClassLabel
    splits = split_sentences(_movie_sentences(), sizes, split_seed, clear_only=True)
    labels = {name: [int(one.rating > 0) for one in split] for name, split in splits.items()}
    return _dataset(splits, labels, ClassLabel(names=list(MOVIE_SENTIMENT.labels)))


def _load_rating(sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    with extra("train"):
        from datasets import Value
    splits = split_sentences(_movie_sentences(), sizes, split_seed, clear_only=False)
    labels = {name: [one.rating for one in split] for name, split in splits.items()}
    return _dataset(splits, labels, Value("float32"))


def _movie_sentences() -> list[RatedSentence]:
    return read_sentences(fetch(MOVIE_SENTENCES) / _FILE)


def _dataset(
    splits: dict[str, list[RatedSentence]], labels: dict[str, list[Any]], label_type: Any
) -> datasets.DatasetDict:
    """In memory: nothing is written to the cache of `datasets`."""
    with extra("train"):
        from datasets import Dataset, DatasetDict, Features, Value
    features = Features({"text": Value("string"), "label": label_type})
    return DatasetDict(
        {
            name: Dataset.from_dict({"text": [one.text for one in split], "label": labels[name]}, features=features)
            for name, split in splits.items()
        }
    )


_SOURCE = "film-review sentences rated by people, Hutto and Gilbert (ICWSM 2014), from the package vaderSentiment 0.5"

MOVIE_SENTIMENT = Task(
    name="movie-sentiment",
    description="Is a film-review sentence negative or positive? (sign of the mean of 15 to 29 human ratings)",
    kind="classification",
    labels=("negative", "positive"),
    metric="accuracy",
    text_columns=("text",),
    source=_SOURCE,
    license="MIT",
    load=_load_sentiment,
    group="packaged",
    train_examples=7_070,
    never_after=("sst2",),
)

MOVIE_RATING = Task(
    name="movie-rating",
    description="How positive is a film-review sentence? (mean of 15 to 29 human ratings, -4 to 4)",
    kind="regression",
    labels=(),
    metric="pearson",
    text_columns=("text",),
    source=_SOURCE,
    license="MIT",
    load=_load_rating,
    group="packaged",
    train_examples=7_430,  # by split seed 0; how many are unclear differs by some
    never_after=("sst2",),
)
