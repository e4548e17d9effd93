"""Splitting: no example in two splits, the same ones for the same seed, and everything said that was left out."""

from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aurora_lora.data.own.source import Piece, Pieces
from aurora_lora.data.own.split import BadRow, Prepared, Splits
from aurora_lora.data.task import SplitSizes
from aurora_lora.errors import UserError

ALL = SplitSizes(None, None, None)


def _pieces(**texts: list[str]) -> Pieces:
    made = {
        name: Piece(Dataset.from_dict({"text": some, "n": list(range(len(some)))}), f"{name}.csv")
        for name, some in texts.items()
    }
    return Pieces(made, {})


def _split(pieces: Pieces, sizes: SplitSizes = ALL, seed: int = 0, **more: Any) -> Splits:
    return Prepared(pieces, ["text"], lambda row: row["text"].casefold(), **more).split(sizes, seed)


def _texts(splits: Splits) -> dict[str, set[str]]:
    return {name: {text.casefold() for text in split["text"]} for name, split in splits.items()}


def test_one_file() -> None:
    texts = [f"text {n % 80}" if n < 90 else f"TEXT {n % 80}" for n in range(100)]
    splits = _split(_pieces(train=texts))
    assert list(splits) == ["train", "validation", "test"]
    found = _texts(splits)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 80
    assert splits.record["examples"] == {"train": 80, "validation": 10, "test": 10}
    assert splits.record["repeated"] == 20
    assert _texts(_split(_pieces(train=texts[::-1]))) == found
    assert _texts(_split(_pieces(train=texts), seed=1)) != found


def test_a_smaller_size_gives_a_part_of_a_larger_one() -> None:
    pieces = _pieces(train=[f"text {n}" for n in range(60)])
    large, small = _split(pieces, SplitSizes(40, 8, 10)), _split(pieces, SplitSizes(20, 8, 5))
    assert large["train"]["text"][:20] == small["train"]["text"][:]
    assert large["test"]["text"][:5] == small["test"]["text"][:]
    assert _texts(_split(pieces, SplitSizes(20, 8, 10)))["test"] == _texts(large)["test"]


def test_given_splits_keep_their_rows_and_training_loses_them() -> None:
    pieces = _pieces(train=["a", "b", "c", "C", "d", "e"], validation=["c", "f", "T"], test=["t", "E", "t"])
    splits = _split(pieces)
    assert _texts(splits) == {"train": {"a", "b", "d"}, "validation": {"c", "f"}, "test": {"t", "e"}}
    assert len(splits["test"]) == 3
    assert splits.record["left_out"] == 4  # c, C and e of train, T of validation
    smaller = _split(pieces, SplitSizes(None, None, 1))
    assert _texts(smaller)["train"] == {"a", "b", "d"}  # whatever of the test file is scored


def test_no_more_than_2000_rows_are_held_out_by_themselves() -> None:
    splits = _split(_pieces(train=[f"text {n}" for n in range(30_000)]))
    assert splits.record["examples"] == {"train": 26_000, "validation": 2_000, "test": 2_000}


def test_a_small_training_split_begins_with_a_row_of_each_class() -> None:
    pieces = _pieces(train=[f"text {n}" for n in range(20)])
    for seed in range(10):
        split = _split(pieces, SplitSizes(3, None, None), seed, strata=[[n % 3] for n in range(20)])
        assert {n % 3 for n in split["train"]["n"]} == {0, 1, 2}


def _counted(splits: Splits, rows: int) -> None:
    record = splits.record
    assert record["rows"] == rows
    assert sum(record["examples"].values()) + record["left_out"] + record["unused"] == rows
    assert record["examples"] == {name: len(split) for name, split in splits.items()}


GROUPS = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 30)), min_size=4, max_size=40)
"""How often each example is in a file."""
FEW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(times=GROUPS, seed=st.integers(0, 5))
def test_no_row_is_lost_and_duplicates_stay_together(times: list[int], seed: int) -> None:
    rows = sum(times)
    splits = _split(_pieces(train=[f"text {n}" for n, count in enumerate(times) for _ in range(count)]), seed=seed)
    _counted(splits, rows)
    assert splits.record["unused"] == 0
    assert sorted(text for split in splits.values() for text in split["text"]) == sorted(
        f"text {n}" for n, count in enumerate(times) for _ in range(count)
    )
    found = _texts(splits)
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    often = {f"text {n}": count for n, count in enumerate(times)}
    tenth = -(-rows // 10)
    share = max(1, -(-sum(count for count in times if count <= tenth) // 10))
    for name in ("test", "validation"):
        if len(splits[name]) > share:  # nothing was small enough
            assert len(found[name]) == 1
            assert all(often[text] >= len(splits[name]) for text in found["train"])
        else:  # nothing that training has would still fit; one example stays there in any case
            missing = share - len(splits[name])
            assert sum(often[text] <= missing for text in found["train"]) <= 1


@FEW
@example(times=[1] * 20, test=[0], sizes=(None, None, None))
@given(
    times=GROUPS,
    test=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    sizes=st.tuples(*[st.one_of(st.none(), st.integers(1, 4)) for _ in range(3)]),
)
def test_the_counts_add_up_whatever_is_asked_for(times: list[int], test: list[int], sizes: Any) -> None:
    train = [f"text {n}" for n, count in enumerate(times) for _ in range(count)]
    pieces = _pieces(train=train, test=[f"text {n}" for n in test])
    try:
        splits = _split(pieces, SplitSizes(*sizes))
    except UserError:
        assert any(sizes) or len(set(train) - set(pieces["test"].data["text"])) < 2  # no cause to refuse
        return
    _counted(splits, len(train) + len(test))


@FEW
@example(texts=list(range(20)), labels=[set()] * 60, sizes=(None, None, None))
@given(
    texts=st.lists(st.integers(0, 30), min_size=12, max_size=60),
    labels=st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=60, max_size=60),
    sizes=st.tuples(st.none(), *[st.one_of(st.none(), st.integers(1, 6)) for _ in range(2)]),
)
def test_every_label_stays_in_training(texts: list[int], labels: list[set[int]], sizes: Any) -> None:
    try:
        splits = _split(_pieces(train=[f"text {n}" for n in texts]), SplitSizes(*sizes), strata=labels)
    except UserError:
        assert any(sizes) or any(labels) or len(set(texts)) < 3  # no cause to refuse
        return
    _counted(splits, len(texts))
    assert {one for n in splits["train"]["n"] for one in labels[n]} == {
        one for n in range(len(texts)) for one in labels[n]
    }


@pytest.mark.parametrize(
    ("texts", "sizes", "message"),
    [
        (["a"] * 9, ALL, r"train\.csv: 9 rows, 1 without duplicates .*, are too few to train and to test on"),
        (list("abcdef"), SplitSizes(9, 1, 1), r"task\.train_size: 9 is more than the 4 rows"),
        (list("abcdef"), SplitSizes(None, 1, 6), r"task\.test_size: 6 is more than the 5 rows"),
        (["a", "b", ""], ALL, r"train\.csv, row 3: nothing there"),
    ],
)
def test_what_cannot_be_split(texts: list[str], sizes: SplitSizes, message: str) -> None:
    def key(row: Any) -> str:
        if not row["text"]:
            raise BadRow("nothing there")
        return str(row["text"])

    with pytest.raises(UserError, match=message):
        Prepared(_pieces(train=texts), ["text"], key).split(sizes, 0)
