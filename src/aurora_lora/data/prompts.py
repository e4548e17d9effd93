"""The prompts of LLM-Adapters (Hu et al., 2023), which the paper's commonsense experiments follow, and their answers.

A question is an instruction that ends with its answer format; the target is "the correct answer is X". Both stand in
the Alpaca wrapper, which ends with "### Response:". The other form of a question is that of lm-evaluation-harness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..extras import extra

if TYPE_CHECKING:
    import datasets

RESPONSE = "### Response:"


def numbered_keys(word: str, count: int) -> list[str]:
    """`answer1`, `answer2`, ...: what the choices of a question are called."""
    return [f"{word}{n}" for n in range(1, count + 1)]


def alpaca(instruction: str, context: str = "") -> str:
    """The Alpaca wrapper around an instruction, up to where the answer begins."""
    paired = ", paired with an input that provides further context" if context else ""
    given = f"### Input:\n{context}\n\n" if context else ""
    return (
        f"Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\n{instruction}\n\n{given}{RESPONSE}\n"
    )


def target(key: str) -> str:
    """What the model is trained to answer; `key` is as in the answer format."""
    return f"the correct answer is {key}"


def true_false(question: str) -> str:
    """The instruction of a question of BoolQ."""
    return f"Please answer the following question with true or false, question: {question}\n\nAnswer format: true/false"


_ASKED = {  # what is asked for, what stands between the choices, and before the answer format
    "solution": ("choose the correct solution to the question", "\n\n", "\n\n"),
    "answer": ("choose the correct answer to the question", " ", "\n\n"),
    "ending": ("choose the correct ending to complete the given sentence", " ", "\n\n"),
    "option": ("choose the correct answer to fill in the blank to complete the given sentence", " ", " "),
}


def instruction(word: str, question: str, choices: Sequence[str]) -> str:
    """The instruction of a question with choices, which are called `solution` (PIQA), `answer` (SIQA, ARC, OBQA),
    `ending` (HellaSwag) or `option` (WinoGrande, whose sentence has a blank, "_")."""
    asked, between, before_format = _ASKED[word]
    listed = between.join(f"{word.title()}{n}: {choice}" for n, choice in enumerate(choices, 1))
    keys = "/".join(numbered_keys(word, len(choices)))
    return f"Please {asked}: {question}\n\n{listed}{before_format}Answer format: {keys}"


# ---------------------------------------------------------------- questions and their choices

Form = Callable[[str, Sequence[str]], tuple[str, list[str]]]
"""A question and its choices become the prompt, and what a model may go on with, choice by choice."""


def numbered(question: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    """LLM-Adapters' form for questions with answers: a model goes on with the number of one."""
    return alpaca(instruction("answer", question, choices)), [
        target(key) for key in numbered_keys("answer", len(choices))
    ]


def cloze(
    question: str, choices: Sequence[str], *, before: str = "Question: ", after: str = "\nAnswer:"
) -> tuple[str, list[str]]:
    """In the manner of lm-evaluation-harness, with the words of its ARC: the choice itself goes on with the text."""
    return before + question + after, [f" {choice}" for choice in choices]


QUESTION_FORMS: dict[str, Form] = {"cloze": cloze, "instruction": numbered}
"""How a question is put, by `task.prompt`."""


class Example(NamedTuple):
    """A question as it is learned and scored: its prompt, what a model may go on with, and which of that is right."""

    prompt: str
    choices: list[str]
    label: int


def dataset_of(examples: Sequence[Example]) -> datasets.Dataset:
    """A data set with a column for each field, in memory."""
    with extra("train"):
        from datasets import Dataset
    return Dataset.from_dict({name: [getattr(one, name) for one in examples] for name in Example._fields})


# ---------------------------------------------------------------- answers


_FAMILIES = (
    ("true", "false"),
    *(numbered_keys(*one) for one in (("solution", 2), ("answer", 5), ("ending", 4), ("option", 2))),
)


def answer_format(instruction: str) -> tuple[str, ...]:
    """The keys that an instruction allows, such as `("answer1", "answer2")`; empty if it names none."""
    found = re.search(r"Answer format: ([a-z]+\d*(?:/[a-z]+\d*)+)\s*$", instruction)
    return tuple(found[1].split("/")) if found else ()


def parse_answer(text: str, key: str, *further: str) -> str | None:
    """The answer in what a model wrote: the first word of the family of `key` after the first "### Response:".

    As in LLM-Adapters, upper case is not an answer, a second "### Response:" ends the answer, and no answer is wrong.
    Unlike there, `answer10` is not taken for `answer1`.

    Args:
        text: what the model wrote. Without a "### Response:" there is no answer in it.
        key: one of the keys that the question allows: `answer2` looks for `answer1` to `answer5`.
        further: keys of the question that may be beyond these, such as `answer6`.

    Returns:
        The key that was found, or None.
    """
    family = next(family for family in _FAMILIES if key in family)
    _, *replies = text.split(RESPONSE)
    found = re.search(rf"({'|'.join((*family, *further))})(?!\d)", replies[0]) if replies else None
    return found[1] if found else None


def key_of(choice: str) -> str | None:
    """The key in a target, None for a choice that is no target."""
    prefix = target("")
    return choice.removeprefix(prefix) if choice.startswith(prefix) else None
