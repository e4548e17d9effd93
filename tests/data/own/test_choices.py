"""Questions with options: how they and their answers may be written."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset
from own_rows import QUESTION, load

from aurora_lora.errors import UserError

CHOICES: dict[str, tuple[dict[str, Any], Any]] = {
    "text": ({"options": ["warm", "cold"], "answer": "cold"}, QUESTION),
    "letter": ({"options": ["warm", "cold"], "answer": "B"}, QUESTION),
    "number": ({"options": ["warm", "cold"], "answer": 1}, QUESTION),
    "as JSON": ({"options": '["warm", "cold"]', "answer": "1"}, QUESTION),
    "as on the hub": ({"options": {"text": ["warm", "cold"], "label": ["1", "2"]}, "answer": "2"}, QUESTION),
    "columns": ({"x": "warm", "y": "cold", "answer": "y"}, {**QUESTION, "options": ("x", "y")}),
    "the number behind an empty column": (
        {"w": "warm", "x": None, "y": "cold", "answer": 2},
        {**QUESTION, "options": ("w", "x", "y")},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case: str) -> None:
    row, columns = CHOICES[case]
    rows = [{"question": f"question {n}?", **row} for n in range(20)]
    example = load("choices", rows, columns)["test"][0]
    assert example["prompt"].startswith("Question: question ")
    assert example["prompt"].endswith("?\nAnswer:")
    assert (example["choices"], example["label"]) == ([" warm", " cold"], 1)
    numbered = load("choices", rows, columns, form="instruction")["test"][0]
    assert numbered["choices"] == ["the correct answer is answer1", "the correct answer is answer2"]
    assert "Answer1: warm Answer2: cold" in numbered["prompt"]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["8", "2", "24"], 2, "24"),
        ([8, 2, 24], 2, "2"),
        ({"text": [8, 2, 24]}, 2, "2"),
    ],
)
def test_a_whole_number_counts_options_unless_they_are_numbers(options: Any, answer: Any, right: str) -> None:
    rows = [{"question": f"question {n}?", "options": options, "answer": answer} for n in range(20)]
    example = load("choices", rows, QUESTION)["test"][0]
    assert example["choices"][example["label"]].strip() == right


@pytest.mark.parametrize(
    ("options", "others", "answer", "right"),
    [
        (["AB", "A", "B", "O"], (["warm", "cold"], "A"), "B", 1),  # a letter, as elsewhere
        (["AB", "A", "B", "O"], (["warm", "cold"], "cold"), "B", 2),  # a text
        ([1, 2, 4, 8], ([1, 2, 4, 8], 0), 2, 2),  # a number: 0 is none of the options
        (["1", "2", "4", "8"], (["1", "2", "4", "8"], 8), 2, 1),
    ],
)
def test_one_way_to_name_options_holds_for_the_whole_column(
    options: list[Any], others: tuple[list[Any], Any], answer: Any, right: int
) -> None:
    other, told = others
    rows = [{"question": f"question {n}?", "options": other, "answer": told} for n in range(20)]
    rows[7] = {"question": "this?", "options": options, "answer": answer}
    (found,) = (
        row["label"]
        for split in load("choices", rows, QUESTION).values()
        for row in split
        if row["prompt"].startswith("Question: this?")
    )
    assert found == right


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": "cold"}, r"the answer 'cold' is none of the options by letter, .* are \(A, B\)"),  # in another way
        ({"options": ["cold", "warm", "cold "]}, "two of the options are 'cold'"),
    ],
)
def test_what_is_refused(change: dict[str, Any], why: str) -> None:
    rows = [{"question": f"question {n}?", "options": ["warm", "cold"], "answer": "B"} for n in range(20)]
    rows[7] |= change
    with pytest.raises(UserError, match=f"line 8: {why}"):
        load("choices", rows, QUESTION)


@pytest.mark.parametrize(
    ("names", "options", "right"),
    [
        (["no", "yes"], ["yes", "no"], ["no", "yes"]),
        (["y", "x"], ["yes", "no"], ["no", "yes"]),  # the columns
        (["0", "1"], ["1", "0"], ["1", "0"]),  # as any whole number, it counts options
        (["1", "2", "3"], ["yes", "no", "maybe"], ["yes", "no"]),  # from 1, and 3 is never right
    ],
)
def test_an_answer_that_the_data_declares_is_its_name(names: list[str], options: list[str], right: list[str]) -> None:
    columns = tuple("xyz"[: len(options)])
    given = dict(zip(columns, options, strict=True))
    rows = [{"question": f"question {n}?", **given, "answer": n % 3 // 2} for n in range(20)]
    Dataset.from_list(rows).cast_column("answer", ClassLabel(names=names)).to_parquet("rows.parquet")
    splits = load("choices", "rows.parquet", {**QUESTION, "options": columns})
    for row in (row for split in splits.values() for row in split):
        assert row["choices"][row["label"]].strip() == right[int(row["prompt"].split()[2].rstrip("?")) % 3 // 2]


def test_the_same_question_with_its_options_in_another_order_is_the_same() -> None:
    rows = [{"question": f"question {n}?", "options": two, "answer": 0} for n in range(10) for two in ("ab", "ba")]
    rows = [{**row, "options": list(row["options"])} for row in rows]
    assert load("choices", rows, QUESTION).record["repeated"] == 10
