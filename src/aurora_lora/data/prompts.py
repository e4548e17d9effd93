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


_FAMILIES = (
    ("true", "false"),
    *(numbered_keys(*one) for one in (("solution", 2), ("answer", 5), ("ending", 4), ("option", 2))),
)
_FORMAT = re.compile(r"Answer format: ([a-z]+\d*(?:/[a-z]+\d*)+)\s*$")


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


# ---------------------------------------------------------------- instructions


def true_false(question: str) -> str:
    """BoolQ."""
    return f"Please answer the following question with true or false, question: {question}\n\nAnswer format: true/false"


def solutions(goal: str, choices: Sequence[str]) -> str:
    """PIQA: each solution is a paragraph."""
    return _instruction(f"choose the correct solution to the question: {goal}", "solution", choices, between="\n\n")


def answers(question: str, choices: Sequence[str]) -> str:
    """SIQA, ARC, OBQA: the answers are on one line."""
    return _instruction(f"choose the correct answer to the question: {question}", "answer", choices)


def endings(activity: str, context: str, choices: Sequence[str]) -> str:
    """HellaSwag."""
    asked = f"choose the correct ending to complete the given sentence: {activity}: {context}"
    return _instruction(asked, "ending", choices)


def options(sentence: str, choices: Sequence[str]) -> str:
    """WinoGrande; the sentence has a blank, "_". The answer format is on the line of the options."""
    asked = f"choose the correct answer to fill in the blank to complete the given sentence: {sentence}"
    return _instruction(asked, "option", choices, before_format=" ")


def _instruction(asked: str, word: str, choices: Sequence[str], between: str = " ", before_format: str = "\n\n") -> str:
    listed = between.join(f"{word.title()}{n}: {choice}" for n, choice in enumerate(choices, 1))
    keys = "/".join(numbered_keys(word, len(choices)))
    return f"Please {asked}\n\n{listed}{before_format}Answer format: {keys}"


# ---------------------------------------------------------------- questions and their choices

Form = Callable[[str, Sequence[str]], tuple[str, list[str]]]
"""A question and its choices become the prompt, and what a model may go on with, choice by choice."""


def numbered(question: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    """LLM-Adapters' form for questions with answers: a model goes on with the number of one."""
    return alpaca(answers(question, choices)), [target(key) for key in numbered_keys("answer", len(choices))]


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


def answer_format(instruction: str) -> tuple[str, ...]:
    """The keys that an instruction allows, such as `("answer1", "answer2")`; empty if it names none."""
    found = _FORMAT.search(instruction)
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

    Raises:
        ValueError: `key` belongs to no family.
    """
    family = next((family for family in _FAMILIES if key in family), None)
    if family is None:
        raise ValueError(f"key={key!r} is no answer of any format")
    parts = text.split(RESPONSE)
    if len(parts) < 2:
        return None
    found = re.search(rf"({'|'.join(dict.fromkeys((*family, *further)))})(?!\d)", parts[1])
    return found[1] if found else None


def key_of(choice: str) -> str | None:
    """The key in a target, None for a choice that is no target."""
    prefix = target("")
    return choice.removeprefix(prefix) if choice.startswith(prefix) else None
