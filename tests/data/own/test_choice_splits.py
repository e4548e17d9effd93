"""Splits of questions: what the data declare of their answers, and options in another order."""

import pytest
from datasets import ClassLabel, Dataset
from own_rows import QUESTION, load

from aurora_lora.errors import UserError
from aurora_lora.train.data import notes


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


def test_a_declared_number_beside_letters_counts_nothing() -> None:
    """Some questions of a data set have options A to D, others 1 to 4: from 0 or from 1, nobody tells."""
    rows = [{"question": f"question {n}?", "options": list("wxyz"), "answer": n % 4} for n in range(20)]
    rows[7]["answer"] = 4
    data = Dataset.from_list(rows).cast_column("answer", ClassLabel(names=[*"ABCD", *"1234"]))
    data.to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"row 8: the answer '1' is none of the options: .* A to D$"):
        load("choices", "rows.parquet", QUESTION)


def test_the_same_question_with_its_options_in_another_order_is_the_same() -> None:
    rows = [{"question": f"question {n % 10}?", "options": ["a", "b"][:: (-1) ** n], "answer": 0} for n in range(20)]
    assert load("choices", rows, QUESTION).record["repeated"] == 10


@pytest.mark.parametrize("form", ["instruction", "cloze"])
def test_a_right_option_that_is_always_the_same_one_is_told(form: str) -> None:
    """Its number is all that would be learned."""
    rows = [
        {"question": f"question {n}?", "x": f"right {n}", "y": f"wrong {n}", "answer": f"right {n}"} for n in range(20)
    ]
    Dataset.from_list(rows).to_parquet("rows.parquet")
    columns = {**QUESTION, "options": ("x", "y")}
    told = form == "instruction"
    found = load("choices", "rows.parquet", columns, form=form).record
    assert found.get("only_place") == (0 if told else None)
    assert any("number 1 in every row" in line for line in notes(found)) == told
    rows[0]["answer"] = "wrong 0"
    Dataset.from_list(rows).to_parquet("mixed.parquet")
    assert "only_place" not in load("choices", "mixed.parquet", columns, form=form).record
