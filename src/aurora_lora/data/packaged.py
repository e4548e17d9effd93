"""Texts from the Python package index: rated sentences of film reviews, and multiple-choice questions of BIG-bench.

BIG-bench asks that its data stay out of training corpora: it is for evaluation and small adapters here.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import extra
from ..files import read_json
from . import prompts
from .fetch import ARCHIVES, fetch
from .prompts import QUESTION_FORMS, Example, dataset_of
from .task import CATALOGUE, SplitSizes, check_size, nothing_left, place, tasks_of

if TYPE_CHECKING:
    import datasets

SENTENCES_FILE, CIFAR10_FILE = "movieReviewSnippets_GroundTruth.txt", "cifar10.json"


def normalise(text: str) -> str:
    """What decides that two sentences are the same: their words, whatever the case, accents' encoding and punctuation.

    The splits of packaged tasks come from it; own data has a key that tells symbols and marks on letters apart.

    >>> normalise("...A  pretentious MESS!") == normalise("A pretentious mess")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split()) or folded


# ---------------------------------------------------------------- sentences of film reviews


@dataclass(frozen=True)
class RatedSentence:
    """A sentence and the mean of 15 to 29 human ratings, from -4 (very negative) to 4 (very positive)."""

    text: str
    rating: float
    key: str
    """The normalised text: equal for sentences that count as the same."""

    @property
    def is_clear(self) -> bool:
        """Whether the mean is far enough from zero for a clear sentiment."""
        return abs(self.rating) >= 0.5


def read_sentences(path: Path) -> list[RatedSentence]:
    """Reads `id <tab> rating <tab> text` lines, each sentence once.

    The same sentence under two ids has been rated twice: it becomes one sentence with the mean of the two ratings. If
    those contradict each other the mean falls near zero, where `movie-sentiment` drops it.
    """
    found: dict[str, tuple[str, list[float]]] = {}
    for line in filter(str.strip, path.read_text(encoding="utf-8").split("\n")):
        _, rating, text = line.split("\t")
        found.setdefault(normalise(text), (text.strip(), []))[1].append(float(rating))
    return [RatedSentence(text, math.fsum(r) / len(r), key) for key, (text, r) in found.items()]


def split_sentences(
    sentences: Sequence[RatedSentence], sizes: SplitSizes, split_seed: int, *, clear_only: bool
) -> dict[str, list[RatedSentence]]:
    """Train, validation and test: no sentence in two of them.

    The seed alone fixes one order of the sentences. Test is the head of that order, validation follows, and train is
    taken from the tail. So test depends on no other size, and a smaller train is the start of a larger one.

    Where test and validation end is counted in clear sentences, which every task here has, whether or not the task
    uses the others: with the same seed and sizes, a held-out sentence of one task is in no other split of another.

    Args:
        sentences: each sentence once.
        sizes: of the splits; more than there are is a UserError.
        split_seed: chooses the order.
        clear_only: leave out the sentences without a clear sentiment.
    """
    order = sorted(sentences, key=lambda one: place(one.key, split_seed))
    clear = [place for place, one in enumerate(order) if one.is_clear]
    validation_size, test_size = sizes.held_out()
    held_out = test_size + validation_size
    if held_out >= len(clear):
        raise nothing_left(len(clear), "sentences")
    test_end, validation_end = clear[test_size - 1] + 1, clear[held_out - 1] + 1
    pools = {"train": order[validation_end:][::-1], "validation": order[test_end:validation_end]}
    splits = {}
    for name, pool in (pools | {"test": order[:test_end]}).items():
        usable = [one for one in pool if one.is_clear or not clear_only]
        splits[name] = usable[: check_size(name, getattr(sizes, name), len(usable), "sentences that are left")]
    return splits


def _load_sentences(name: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    """In memory: nothing is written to the cache of `datasets`."""
    with extra("train"):
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    labels = CATALOGUE["sentences"]["tasks"][name].get("labels")
    sentences = read_sentences(fetch(ARCHIVES["vaderSentiment"]) / SENTENCES_FILE)
    kind = ClassLabel(names=labels) if labels else Value("float32")
    features = Features({"text": Value("string"), "label": kind})
    made = {}
    for part, split in split_sentences(sentences, sizes, split_seed, clear_only=bool(labels)).items():
        learned: list[Any] = [int(one.rating > 0) if labels else one.rating for one in split]
        made[part] = Dataset.from_dict({"text": [one.text for one in split], "label": learned}, features=features)
    return DatasetDict(made)


MOVIES = tasks_of("sentences", _load_sentences)

# ---------------------------------------------------------------- questions of BIG-bench


@dataclass(frozen=True)
class Item:
    """A question, its choices and which one is right.

    Args:
        group: questions of one group (on the same sentence) go to the same split.
    """

    text: str
    choices: tuple[str, ...]
    label: int
    group: str


def read_questions(path: Path, group: Callable[[str], str]) -> list[Item]:
    """Reads a `task.json`, each question once; one that stands there with two answers is left out.

    Args:
        path: the file; its `examples` have `input` and `target_scores`, 1 for the right choice and 0 for the others.
        group: gives the part of an input that must not stand in two splits.
    """
    found: dict[tuple[str, frozenset[str]], Item] = {}
    contradicted = set()
    for row in read_json(path)["examples"]:
        text, scores = row["input"].strip(), row["target_scores"]
        choices = tuple(choice.strip() for choice in scores)
        label = list(scores.values()).index(1)
        key = (text, frozenset(choices))
        known = found.setdefault(key, Item(text, choices, label, normalise(group(text))))
        if known.choices[known.label] != choices[label]:
            contradicted.add(key)
    return [question for key, question in found.items() if key not in contradicted]


def split_questions(questions: Sequence[Item], sizes: SplitSizes, split_seed: int) -> dict[str, list[Item]]:
    """Train, validation and test: no group in two of them.

    The seed alone fixes one order of the groups and of the questions in each. Test is the head of that order,
    validation follows, train is taken from the tail; what a cut leaves of a group is left out. Sizes beyond what there
    is are a UserError.
    """

    def places(question: Item) -> tuple[bytes, bytes]:
        return place(question.group, split_seed), place(f"{question.text}\n{question.choices}", split_seed)

    def cut(order: list[Item], size: int) -> tuple[list[Item], list[Item]]:
        head = order[:size]
        return head, [one for one in order[size:] if one.group != head[-1].group]

    validation_size, test_size = sizes.held_out()
    test, rest = cut(sorted(questions, key=places), test_size)
    validation, rest = cut(rest, validation_size)
    if len(validation) < validation_size or not rest:
        raise nothing_left(len(questions), "questions")
    check_size("train", sizes.train, len(rest), "questions that are left")
    return {"train": rest[::-1][: sizes.train], "validation": validation, "test": test}


def _true_false(question: str, choices: Sequence[str], *, before: str = "") -> tuple[str, list[str]]:
    """LLM-Adapters' form for yes or no; the first choice is true."""
    if [choice.casefold() for choice in choices] not in (["yes", "no"], ["correct", "incorrect"]):
        raise ValueError(f"unexpected choices {choices} of {question[:60]!r}")
    return prompts.alpaca(prompts.true_false(before + question)), [prompts.target(key) for key in ("true", "false")]


FORMS: dict[str, Mapping[str, prompts.Form]] = {
    "siqa": QUESTION_FORMS,
    "wikihow-goal": {**QUESTION_FORMS, "cloze": functools.partial(prompts.cloze, before="", after="")},
    "strategyqa": {**QUESTION_FORMS, "instruction": _true_false},
    "winowhy": {
        "cloze": functools.partial(prompts.cloze, before="", after=" The above reasoning is"),
        "instruction": functools.partial(_true_false, before="is this reasoning correct? "),
    },
}


def _situation(text: str) -> str:
    """What comes before the question in an input of SIQA."""
    found = re.fullmatch(r"(.*[.!?\"'])\s+\S[^.!?]*\?", text, re.DOTALL)
    return found[1] if found else text


GROUPS: dict[str, Callable[[str], str]] = {
    "siqa": _situation,
    "wikihow-goal": str,
    "strategyqa": str,
    "winowhy": lambda text: re.split(r" The '[^']*' refers? to ", text)[0],  # the sentence that has several reasons
}
"""What must not stand in two splits of a question's text."""


def _load_questions(name: str, sizes: SplitSizes, split_seed: int, form: str = "cloze") -> datasets.DatasetDict:
    with extra("train"):
        from datasets import DatasetDict
    make = FORMS[name][form]
    questions = read_questions(fetch(ARCHIVES["bigbench"]) / f"{name}.json", GROUPS[name])
    return DatasetDict(
        {
            split: dataset_of([Example(*make(one.text, one.choices), one.label) for one in some])
            for split, some in split_questions(questions, sizes, split_seed).items()
        }
    )


BIG_BENCH = tasks_of("questions", _load_questions)
