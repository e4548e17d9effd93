"""Labels of own data: how they may be written, and which classes they make."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from own_rows import labelled, load, save_images

from aurora_lora.errors import UserError


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["bad", "good", " fine "], ["bad", "fine", "good"]),
        ([2, 10, 1], ["1", "2", "10"]),
        (["2", "10", "-1"], ["-1", "2", "10"]),
        ([True, False], ["False", "True"]),
        ([1.0, 2.0], ["1", "2"]),
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
    rows = labelled(["good", "bad", "bad", "godo", "godo"] * 4)
    splits = load("classification", rows, test_data=[{"text": "another", "label": "good"}])
    assert splits.record["classes"] == {"bad": 8, "godo": 8, "good": 5}
    assert list(splits.record["classes"]) == splits["train"].features["label"].names
    assert load("multi-label", labelled([["a", "b"], [], ["b"]] * 5)).record["classes"] == {"a": 5, "b": 10}
    assert "classes" not in load("regression", labelled([1, 2, 3] * 5)).record


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


@pytest.mark.parametrize("label", [List, LargeList, lambda one: one], ids=["list", "large list", "one"])
def test_several_labels_that_the_data_declares(label: Callable[[Any], Any]) -> None:
    several = not isinstance(label(None), type(None))
    given: list[Any] = [[1, 0], [], [1]] if several else [1, 0, 1]
    features = Features({"text": Value("string"), "label": label(ClassLabel(names=["urgent", "billing", "never"]))})
    Dataset.from_list(labelled(given * 10), features=features).to_parquet("rows.parquet")
    splits = load("multi-label", "rows.parquet")
    assert splits["train"].features["label"].feature.names == ["urgent", "billing", "never"]
    for row in splits["train"]:
        expected = given[int(row["text"].split()[1]) % 3]
        assert row["label"] == (expected if several else [expected])


def test_numbers() -> None:
    splits = load("regression", labelled([0, "1.5", -2, "1e2"] * 5))
    expected = [0, 1.5, -2, 100]
    assert all(row["label"] == expected[int(row["text"].split()[1]) % 4] for row in splits["train"])


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([["a", "b"], [], ["c"]], None),
        (["a, b", "", "c"], None),
        (["b;a", None, "c"], None),
        (['["a", "b"]', "[]", '["c"]'], None),
        (["['a', 'b']", "[]", "['c']"], None),  # as pandas writes them
        (["{'b', 'a'}", "set()", "{'c'}"], None),
        ([(1, 1, 0), (0, 0, 0), (0, 0, 1)], ("a", "b", "c")),
        ([("true", "Yes", "no"), (False, False, False), ("0", "0", "1.0")], ("a", "b", "c")),
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


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_a_label_of_the_test_file_that_training_has_not(kind: str) -> None:
    with pytest.raises(
        UserError, match=r"test_data\.jsonl, row 3: the label 'c' is in no row of rows\.jsonl \(its labels: 'a', 'b'\)"
    ):
        load(kind, labelled(["a", "b"] * 9), test_data=labelled(["a", "b", "c"]))
    load(kind, labelled(["a", "b", "c"] * 9), test_data=[{"text": "new", "label": "c"}])


def test_a_declared_label_that_only_the_test_data_has() -> None:
    save_images(Path("pictures/train"))
    save_images(Path("pictures/test"), 3)
    Path("pictures/test/red").rename("pictures/test/bird")
    with pytest.raises(
        UserError, match=r"the label 'bird' is in no row of pictures, train \(its labels: 'blue', 'green', 'red'\)"
    ):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_a_switch_that_is_none() -> None:
    rows = [{"text": f"t {n}", "a": n % 2, "b": n} for n in range(9)]
    with pytest.raises(UserError, match=r"row 3: 'b' is 2, which is neither 0 nor 1"):
        load("multi-label", rows, {"text": ("text",), "label": ("a", "b")})


def test_a_label_of_one_example_beside_test_data() -> None:
    """It is for training: nothing of the test data is taken from the same rows."""
    splits = load("classification", labelled([*["a", "b"] * 9, "c"]), test_data=[{"text": "new", "label": "a"}])
    assert 2 in splits["train"]["label"]


def test_whole_numbers_in_a_column_of_decimals() -> None:
    """As databases write them."""
    labels = pa.array([Decimal(n % 3) for n in range(30)], pa.decimal128(38, 0))
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(30)], "label": labels}), "rows.parquet")
    assert load("classification", "rows.parquet")["train"].features["label"].names == ["0", "1", "2"]
