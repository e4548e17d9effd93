"""The prompts, character by character, and the parser on what models write."""

import pytest

from aurora_lora.data import prompts
from aurora_lora.data.prompts import answer_format, instruction, key_of, parse_answer, target

# The forms of every family, verbatim from LLM-Adapters (github.com/AGI-Edgerunners/LLM-Adapters, dataset/*/test.json).
FORMS = [
    (
        prompts.true_false("is house tax and property tax are same?"),
        "Please answer the following question with true or false, question: is house tax and property tax are same?\n\n"
        "Answer format: true/false",
    ),
    (
        instruction("solution", "dresser", ["replace drawer with bobby pin ", "finish, woodgrain with  bobby pin "]),
        "Please choose the correct solution to the question: dresser\n\n"
        "Solution1: replace drawer with bobby pin \n\nSolution2: finish, woodgrain with  bobby pin \n\n"
        "Answer format: solution1/solution2",
    ),
    (
        instruction("answer", "Riley was in pain. How would Riley feel afterwards?", ["aware", "Painful", "Great"]),
        "Please choose the correct answer to the question: Riley was in pain. How would Riley feel afterwards?\n\n"
        "Answer1: aware Answer2: Painful Answer3: Great\n\nAnswer format: answer1/answer2/answer3",
    ),
    (
        instruction(
            "ending", "High jump: A boy is running down a track. the boy", ["runs into a car.", "gets in a mat."]
        ),
        "Please choose the correct ending to complete the given sentence: High jump: A boy is running down a track. "
        "the boy\n\nEnding1: runs into a car. Ending2: gets in a mat.\n\nAnswer format: ending1/ending2",
    ),
    (
        instruction(
            "option", "God liked to control the day and the night, but the _ was too bright.", ["day", "night"]
        ),
        "Please choose the correct answer to fill in the blank to complete the given sentence: God liked to control "
        "the day and the night, but the _ was too bright.\n\n"
        "Option1: day Option2: night Answer format: option1/option2",
    ),
]


@pytest.mark.parametrize(("made", "expected"), FORMS)
def test_instructions(made: str, expected: str) -> None:
    assert made == expected
    keys = answer_format(made)
    assert len(keys) >= 2
    assert all(parse_answer(f"### Response:\n{target(key)}", keys[0]) == key for key in keys)


def test_wrapper() -> None:
    assert prompts.alpaca("Do it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert prompts.alpaca("Do it.", "With this.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Input:\nWith this.\n\n### Response:\n"
    )
    assert target("answer2") == "the correct answer is answer2"
    assert (key_of("the correct answer is true"), key_of(" Find somewhere to go")) == ("true", None)


@pytest.mark.parametrize(
    ("written", "key", "found"),
    [
        ("the correct answer is answer3", "answer1", "answer3"),
        ("", "answer1", None),
        ("not answer4 but answer1", "answer1", "answer4"),  # the first counts
        ("Answer1", "answer1", None),  # as in LLM-Adapters, case matters
        ("answer10 answer3", "answer1", "answer3"),
        ("answer6", "answer1", None),
        ("the correct answer is solution2", "answer1", None),  # another family
        ("option2option1", "option1", "option2"),
        ("the correct answer is answer2</s>", "answer1", "answer2"),
        ("I do not know.\n### Response:\nanswer1", "answer1", None),  # a second response is no part of the first
        ("it is untrue", "true", "true"),  # a word is not looked for, as in LLM-Adapters
        ("the correct answer is answer٣", "answer1", None),
    ],
)
def test_awkward_answers(written: str, key: str, found: str | None) -> None:
    assert parse_answer(f"### Response:{written}", key) == found


def test_a_question_may_have_more_answers_than_the_papers() -> None:
    keys = answer_format(instruction("answer", "Which?", list("abcdefghijkl")))
    assert keys == tuple(f"answer{n}" for n in range(1, 13))
    assert [parse_answer(f"{prompts.RESPONSE} {key}.", *keys) for key in keys] == list(keys)
    assert parse_answer(f"{prompts.RESPONSE} answer5, not answer1", *keys[:3]) == "answer5"  # as in LLM-Adapters
