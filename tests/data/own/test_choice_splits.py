"""Splits of questions: what the data declare of their answers, and options in another order."""

import pytest
from datasets import ClassLabel, Dataset
from own_rows import QUESTION, load

from aurora_lora.errors import UserError


@pytest.mark.parametrize(
    ("names", "options", "right"),
    [
        (["no", "yes"], ["yes", "no"], ["no", "yes"]),
        (["y", "x"], ["yes", "no"], ["no", "yes"]),  # columns; of a list, letters
        (["0", "1"], ["yes", "no"], ["yes", "no"]),
        (["1", "0"], ["yes", "no"], ["no", "yes"]),
        (["8", "2"], ["2", "8"], ["8", "2"]),
        (["0", "1"], ["1", "0"], ["1", "0"]),  # as any whole number, it counts options
        (["1", "2"], ["yes", "no"], ["yes", "no"]),  # from 1
        (["first", "second"], ["yes", "no"], ["yes", "no"]),
        (["1", "2", "3"], ["yes", "no", "maybe"], ["yes", "no"]),  # from 1, and 3 is never right
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["list", "columns"])
def test_an_answer_that_the_data_declares_is_its_name(
    listed: bool, names: list[str], options: list[str], right: list[str]
) -> None:
    if listed and names == ["y", "x"]:
        names = ["B", "A"]
    given = {"options": options} if listed else dict(zip("xyz", options, strict=False))
    rows = [{"question": f"question {n}?", **given, "answer": n % 3 // 2} for n in range(20)]
    Dataset.from_list(rows).cast_column("answer", ClassLabel(names=names)).to_parquet("rows.parquet")
    splits = load(
        "choices", "rows.parquet", {**QUESTION, "options": ("options",) if listed else tuple("xyz"[: len(options)])}
    )
    for row in (row for split in splits.values() for row in split):
        assert row["choices"][row["label"]].strip() == right[int(row["prompt"].split()[2].rstrip("?")) % 3 // 2]


def test_a_declared_answer_that_one_row_does_not_offer() -> None:
    """The place of its class would be another option."""
    rows = [{"question": f"question {n}?", "options": ["yes", "no"], "answer": 1 + n % 2} for n in range(20)]
    rows[7]["answer"] = 0
    data = Dataset.from_list(rows).cast_column("answer", ClassLabel(names=["maybe", "no", "yes"]))
    data.to_parquet("rows.parquet")
    with pytest.raises(UserError, match="row 8: the answer 'maybe' is none of the options"):
        load("choices", "rows.parquet", QUESTION)


def test_the_same_question_with_its_options_in_another_order_is_the_same() -> None:
    rows = [{"question": f"question {n % 10}?", "options": ["a", "b"][:: (-1) ** n], "answer": 0} for n in range(20)]
    assert load("choices", rows, QUESTION).record["repeated"] == 10
