"""Multiple-choice questions of BIG-bench, from its package on the Python package index.

BIG-bench asks that its data stay out of training corpora: it is for evaluation and small adapters here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..extras import extra
from ..files import read_json
from . import prompts
from .fetch import Archive, fetch
from .movie_sentences import normalise
from .prompts import QUESTION_FORMS, Example, dataset_of
from .task import SplitSizes, Task, check_size, place

if TYPE_CHECKING:
    import datasets

FOLDERS = {
    "siqa": "social_iqa",
    "wikihow-goal": "goal_step_wikihow/goal_inference",
    "strategyqa": "strategyqa",
    "winowhy": "winowhy",
}
CIFAR10_FILE = "cifar10.json"
# One archive for all, so that the large download is needed once.
BIGBENCH = Archive(
    requirement="bigbench==1.0.0",
    kind="sdist",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    members={
        f"bigbench-1.0.0/bigbench/benchmark_tasks/{folder}/task.json": f"{name}.json"
        for name, folder in FOLDERS.items()
    }
    | {"bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64/task.json": CIFAR10_FILE},
    description="four sets of questions of BIG-bench, and CIFAR-10's test images",
    megabytes=358,
    license="Apache-2.0",
)


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

    Raises:
        UserError: the file does not have this form.
    """
    try:
        rows = read_json(path)["examples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no task.json of BIG-bench: {error}") from error
    found: dict[tuple[str, frozenset[str]], Item] = {}
    contradicted = set()
    for number, row in enumerate(rows):
        try:
            text, scores = row["input"].strip(), dict(row["target_scores"])
            choices = tuple(choice.strip() for choice in scores)
            (label,) = (index for index, value in enumerate(scores.values()) if value == 1)
            well_formed = len(choices) > 1 and all(choices) and bool(text) and set(scores.values()) == {0, 1}
        except (KeyError, TypeError, ValueError, AttributeError):
            well_formed = False
        if not well_formed:
            raise UserError(
                f"{path}, example {number}: expected an input and choices, one of them right; got {row!r:.80}"
            )
        question = Item(text, choices, label, normalise(group(text)))
        key = (text, frozenset(choices))
        known = found.setdefault(key, question)
        if known.choices[known.label] != choices[label]:
            contradicted.add(key)
    if not found.keys() - contradicted:
        raise UserError(f"{path} holds no questions")
    return [question for key, question in found.items() if key not in contradicted]


def split_questions(questions: Sequence[Item], sizes: SplitSizes, split_seed: int) -> dict[str, list[Item]]:
    """Train, validation and test: no group in two of them.

    The seed alone fixes one order of the groups (by a hash) and of the questions in each. Test is the head of that
    order, validation follows, train is taken from the tail; what a cut leaves of a group is left out.

    Raises:
        UserError: more questions asked for than there are.
    """

    def places(question: Item) -> tuple[bytes, bytes]:
        return place(question.group, split_seed), place(f"{question.text}\n{question.choices}", split_seed)

    order = sorted(questions, key=places)
    validation_size, test_size = sizes.held_out()
    test, rest = _cut(order, test_size)
    validation, rest = _cut(rest, validation_size)
    if len(validation) < validation_size or not rest:
        raise sizes.nothing_left(len(order), "questions")
    check_size("train", sizes.train, len(rest), "questions that are left")
    return {"train": rest[::-1][: sizes.train], "validation": validation, "test": test}


def _cut(order: list[Item], size: int) -> tuple[list[Item], list[Item]]:
    """The first `size`, and those that follow without the rest of the last group."""
    head, tail = order[:size], order[size:]
    return head, [one for one in tail if one.group != head[-1].group]


# ---------------------------------------------------------------- prompts


def _true_false(question: str, choices: Sequence[str], *, before: str = "") -> tuple[str, list[str]]:
    """LLM-Adapters' form for yes or no; the first choice is true."""
    yes, no = (choice.casefold() for choice in choices)
    if (yes, no) not in (("yes", "no"), ("correct", "incorrect")):
        raise UserError(f"unexpected choices {choices} of {question[:60]!r}")
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


def _load(name: str, sizes: SplitSizes, split_seed: int, form: str = "cloze") -> datasets.DatasetDict:
    """In memory: nothing is written to the cache of `datasets`."""
    with extra("train"):
        from datasets import DatasetDict
    make = FORMS[name][form]
    splits = split_questions(read_questions(fetch(BIGBENCH) / f"{name}.json", GROUPS[name]), sizes, split_seed)
    loaded = {}
    for split, questions in splits.items():
        loaded[split] = dataset_of([Example(*make(one.text, one.choices), one.label) for one in questions])
    return DatasetDict(loaded)


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


_TASKS = {
    # question, training examples, choices
    "siqa": ("What would a person feel, want or do? (SIQA's test questions)", 1_225, 3),
    "wikihow-goal": ("Which goal does a step belong to?", 999, 4),
    "strategyqa": ("Yes or no, where the steps of reasoning are left to the reader", 1_589, 2),
    "winowhy": ("Is the reason given for what a pronoun refers to correct?", 2_147, 2),
}
BIG_BENCH = tuple(
    Task(
        name=name,
        description=question,
        kind="multiple-choice",
        labels=(),
        metric="accuracy",
        text_columns=("prompt", "choices"),
        source=f"BIG-bench (Srivastava et al., 2022), {FOLDERS[name]}, from the package bigbench 1.0.0",
        license="Apache-2.0",
        load=functools.partial(_load, name),
        group="packaged",
        sizes=SplitSizes(None, 200, 500),
        train_examples=train,
        max_length=256,
        prompt_forms=("cloze", "instruction"),
        # the paper's own test questions: a model that has learned them must not be tested on the hub's SIQA
        never_after=("commonsense",) if name == "siqa" else (),
        classes=classes,
    )
    for name, (question, train, classes) in _TASKS.items()
)
