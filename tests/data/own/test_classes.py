"""Labels of own data: how they may be written, which classes they make, and their mistakes as one line with the row."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from own_rows import labelled, load

from aurora_lora.data.own.columns import same_text
from aurora_lora.data.task import SplitSizes
from aurora_lora.errors import UserError


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A pretentious mess.", "...a  pretentious\tMESS...", True),
        ("one of the best films", "one of the worst films", False),
        ("5 + 3", "5 < 3", False),
        ("की", "का", False),
        ("great 😀", "great 😡", False),
    ],
)
def test_what_counts_as_the_same_text(one: str, other: str, same: bool) -> None:
    assert (same_text(one) == same_text(other)) is same


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["bad", "good", " fine "], ["bad", "fine", "good"]),
        ([2, 10, 1], ["1", "2", "10"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_classes(labels: list[Any], names: list[str]) -> None:
    splits = load("classification", labelled(labels * 10))
    assert splits["train"].features["label"].names == names
    for split in splits.values():
        for row in split:
            n = int(row["text"].split()[1])
            assert names[row["label"]] == str(labels[n % len(labels)]).strip().removesuffix(".0")


def test_how_many_rows_have_each_class() -> None:
    rows = [*labelled(["good", "bad", "bad", "godo", "godo"] * 4), {"text": "TEXT 3!", "label": "godo"}]
    splits = load("classification", rows, test_data=[{"text": "another", "label": "good"}])
    assert splits.record["repeated"] == 1
    assert splits.record["classes"] == {"bad": 8, "godo": 9, "good": 5}
    assert list(splits.record["classes"]) == splits["train"].features["label"].names
    assert load("multi-label", labelled([["a", "b"], [], ["b"]] * 5)).record["classes"] == {"a": 5, "b": 10}


def test_classes_that_the_data_declares_keep_their_order() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zero", "one ", "never"])})
    Dataset.from_list(labelled([0, 1] * 10), features=features).to_parquet("rows.parquet")
    splits = load("classification", "rows.parquet")
    assert splits["train"].features["label"].names == ["zero", "one", "never"]
    assert splits.record["classes"] == {"zero": 10, "one": 10, "never": 0}
    assert all(row["label"] == int(row["text"].split()[1]) % 2 for row in splits["train"])
    Dataset.from_list(labelled([0, 1] * 10 + [-1]), features=features).to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet, row 21: it has no label"):
        load("classification", "rows.parquet")


@pytest.mark.parametrize("several", [True, False])
def test_several_labels_that_the_data_declares(several: bool) -> None:
    given: list[Any] = [[1, 0], [], [1]] if several else [1, 0, 1]
    names = ClassLabel(names=["urgent", "billing", "never"])
    features = Features({"text": Value("string"), "label": List(names) if several else names})
    Dataset.from_list(labelled(given * 10), features=features).to_parquet("rows.parquet")
    splits = load("multi-label", "rows.parquet")
    assert splits["train"].features["label"].feature.names == ["urgent", "billing", "never"]
    for row in splits["train"]:
        expected = given[int(row["text"].split()[1]) % 3]
        assert row["label"] == (expected if several else [expected])


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([["a", "b"], [], ["c"]], None),
        (["a, b", "", "c"], None),
        (['["a", "b"]', "[]", '["c"]'], None),
        (["['a', 'b']", "[]", "['c']"], None),  # as pandas writes them
        (["{'b', 'a'}", "set()", "{'c'}"], None),
        ([(1, 1, 0), (0, 0, 0), (0, 0, 1)], ("a", "b", "c")),
    ],
)
def test_several_labels(labels: list[Any], columns: tuple[str, ...] | None) -> None:
    rows = [{"text": f"text {n}"} for n in range(15)]
    for n, row in enumerate(rows):
        row |= {"label": labels[n % 3]} if columns is None else dict(zip(columns, map(str, labels[n % 3]), strict=True))
    splits = load("multi-label", rows, {"text": ("text",), "label": columns or ("label",)})
    assert splits["train"].features["label"].feature.names == ["a", "b", "c"]
    for row in splits["train"]:
        assert set(row["label"]) == ({0, 1}, set(), {2})[int(row["text"].split()[1]) % 3]


def test_a_label_of_the_test_file_that_training_has_not() -> None:
    with pytest.raises(
        UserError, match=r"test_data\.jsonl, line 3: the label 'c' is in no row of rows\.jsonl \(its labels: 'a', 'b'\)"
    ):
        load("classification", labelled(["a", "b"] * 9), test_data=labelled(["a", "b", "c"]))


def test_each_of_several_labels_stays_in_training() -> None:
    rows = labelled([["rare", "a"]] * 2 + [["a"], ["b"]] * 19)
    for seed in range(10):
        splits = load("multi-label", rows, sizes=SplitSizes(None, 12, 12), seed=seed)
        assert 2 in {one for row in splits["train"]["label"] for one in row}


AB = labelled(["a", "b"] * 5)
MISTAKES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no text": ("classification", [*AB, {"text": " ", "label": "a"}], r"line 11: 'text' is empty"),
    "a number": ("classification", [{"text": n, "label": n % 2} for n in range(9)], "line 1: 'text' is 0, which is no"),
    "no label": (
        "classification",
        labelled(["a", "b", None] * 5),
        r"line 3: it has no label; 5 of 15 rows: line 3, line 6, line 9 and 2 more; task",
    ),
    "fractions": ("classification", labelled([1.5, 2.5] * 5), r"line 1: the label 1\.5 .*is this regression\?"),
    "one class": ("classification", labelled(["a"] * 9), r"rows\.jsonl has one label only, 'a'"),
    "one example": (
        "classification",
        [*AB, *labelled(["c"])],
        r"rows\.jsonl: training and testing need an example each of .* there is one of 'c' \(line 11\): add examples",
    ),
    "a typo": (
        "classification",
        labelled(["good", "bad"] * 5 + ["Goood", "awful"]),
        r"one of 'Goood' \(line 11; did you mean 'good'\?\), 'awful' \(line 12\): add",
    ),
    "numbers": (
        "classification",
        labelled([f"{n / 7:.2f}" for n in range(9)]),
        "and 6 more: is this regression",
    ),
    "words": (
        "regression",
        labelled(["a", "b"] * 5),
        "1: the label 'a' is no number; no other .* classification",
    ),
    "large": ("regression", labelled([1, 2, 3, 1e39]), r"line 4: the label 1e\+39 is not .*beyond 3\.4e\+38"),
    "vectors": ("multi-label", labelled(["[0, 1, 1]", "1, 0, 0"] * 5), r"task\.label: 'label' has 0 and 1 in place of"),
    "two in one": ("multi-label", labelled(["a", "['a', 'b' 'c']"] * 5), "line 2: the labels .* look like a list"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    kind, rows, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as raised:
        load(kind, rows)
    assert "\n" not in str(raised.value)
