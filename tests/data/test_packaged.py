"""The packaged texts: reading, splitting, prompts; the real files where they can be had."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.data import SplitSizes, get_task, packaged
from aurora_lora.data.fetch import ARCHIVES, FetchError, fetch
from aurora_lora.data.packaged import (
    BIG_BENCH,
    GROUPS,
    MOVIES,
    Item,
    RatedSentence,
    normalise,
    read_questions,
    read_sentences,
    split_questions,
    split_sentences,
)
from aurora_lora.data.prompts import alpaca
from aurora_lora.errors import UserError

SIZES = {"seed": st.integers(0, 2**40), "test": st.integers(1, 50), "validation": st.integers(1, 50)}
ROWS = {
    "siqa": {"input": "Jo fell. What will Jo do? ", "target_scores": {"get up": 1, "fly": 0, "eat": 0}},
    "wikihow-goal": {
        "input": "The most reasonable goal of 'Boil water' is ",
        "target_scores": {"Fly a Kite": 0, "Cook Pasta": 1, "Buy Shoes": 0, "Sleep Well": 0},
    },
    "strategyqa": {"input": "Can a crow read?", "target_scores": {"Yes": 0, "No": 1}, "target": "No. It is a bird."},
    "winowhy": {
        "input": "Ann thanked Eve because she had helped. The 'she' refers to eve because Eve had helped.",
        "target_scores": {"correct": 1, "incorrect": 0},
    },
}


def the_real(archive: Any) -> Path:
    try:
        return fetch(archive)
    except FetchError as error:
        if "HASH" in str(error):
            raise
        pytest.skip(str(error))


def write_questions(path: Path, rows: list[Any]) -> Path:
    """In the form of BIG-bench's task.json (github.com/google/BIG-bench, docs/doc.md)."""
    path.write_text(json.dumps({"canary": "-", "name": path.stem, "examples": rows}))
    return path


def write_sentences(path: Path, rows: list[tuple[float, str]]) -> Path:
    path.write_bytes("\r\n".join(f"{n}\t{rating}\t{text}" for n, (rating, text) in enumerate(rows, 1)).encode())
    return path


RATINGS = [(round(4 * np.sin(index), 3), f"sentence number {index}") for index in range(200)]
"""About one in eight is not clear."""
SENTENCES = [RatedSentence(text, rating, normalise(text)) for rating, text in RATINGS]
QUESTIONS = [Item(f"question {g}.{n}", ("a", "b"), 0, f"group {g}") for g in range(60) for n in range(1 + g % 4)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the place of the fetched ones; the sentences have duplicates."""
    monkeypatch.setattr(packaged, "fetch", lambda _: tmp_path)
    for name, row in ROWS.items():
        write_questions(tmp_path / f"{name}.json", [{**row, "input": f"{n}. {row['input']}"} for n in range(12)])
    again = [(2.0, "Sentence  NUMBER 7!"), (-3.0, "'sentence number 8'")]
    write_sentences(tmp_path / packaged.SENTENCES_FILE, [*RATINGS, *again])
    return tmp_path


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("name", "form", "prompt", "choices"),
    [
        ("siqa", "cloze", "Question: {}Jo fell. What will Jo do?\nAnswer:", [" get up", " fly", " eat"]),
        (
            "siqa",
            "instruction",
            "Please choose the correct answer to the question: {}Jo fell. What will Jo do?\n\n"
            "Answer1: get up Answer2: fly Answer3: eat\n\nAnswer format: answer1/answer2/answer3",
            [f"the correct answer is answer{n}" for n in (1, 2, 3)],
        ),
        (
            "wikihow-goal",
            "cloze",
            "{}The most reasonable goal of 'Boil water' is",
            [" Fly a Kite", " Cook Pasta", " Buy Shoes", " Sleep Well"],
        ),
        (
            "winowhy",
            "instruction",
            "Please answer the following question with true or false, question: is this reasoning correct? "
            "{}Ann thanked Eve because she had helped. The 'she' refers to eve because Eve had helped.\n\n"
            "Answer format: true/false",
            ["the correct answer is true", "the correct answer is false"],
        ),
    ],
)
def test_prompts(name: str, form: str, prompt: str, choices: list[str], files: Path) -> None:
    task = get_task(name)
    data = task.load_splits(SplitSizes(None, 3, 4), 0, form=form)
    assert data.num_rows == {"train": 5, "validation": 3, "test": 4}
    rows = [row for split in data.values() for row in split]
    wanted = {prompt.format(f"{n}. ") for n in range(12)}
    assert {row["prompt"] for row in rows} == ({alpaca(one) for one in wanted} if form == "instruction" else wanted)
    (right,) = (index for index, value in enumerate(ROWS[name]["target_scores"].values()) if value)
    assert all((row["choices"], row["label"]) == (choices, right) for row in rows)
    with pytest.raises(UserError, match=r"task.validation_size and task.test_size must be given"):
        task.load_splits(SplitSizes(None, None, None), 0)


@settings(deadline=None, max_examples=60)
@given(**SIZES, train=st.integers(1, 30))
def test_no_group_is_in_two_splits(seed: int, test: int, validation: int, train: int) -> None:
    splits = split_questions(QUESTIONS, SplitSizes(train, validation, test), seed)
    assert [len(split) for split in splits.values()] == [train, validation, test]
    groups = [{one.group for one in split} for split in splits.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert splits == split_questions(QUESTIONS[::-1], SplitSizes(train, validation, test), seed)
    whole = split_questions(QUESTIONS, SplitSizes(None, validation, test), seed)
    assert (splits["validation"], splits["test"]) == (whole["validation"], whole["test"])
    assert splits["train"] == whole["train"][:train]
    # training questions come from the other end: they stay where they are when more is held out
    assert split_questions(QUESTIONS, SplitSizes(train, validation + 5, test + 5), seed)["train"] == splits["train"]
    assert whole != split_questions(QUESTIONS, SplitSizes(None, validation, test), seed + 1)


def test_sizes_that_exceed_the_data() -> None:
    with pytest.raises(UserError, match=r"nothing is left to train on of 150 questions"):
        split_questions(QUESTIONS, SplitSizes(None, 100, 100), 0)
    clear = sum(one.is_clear for one in SENTENCES)
    with pytest.raises(UserError, match=f"nothing is left to train on of {clear} sentences"):
        split_sentences(SENTENCES, SplitSizes(None, 100, 100), 0, clear_only=True)
    with pytest.raises(UserError, match=f"train_size: 10,000 is more than the {clear - 30:,} sentences that are left"):
        split_sentences(SENTENCES, SplitSizes(10_000, 10, 20), 0, clear_only=True)


def test_questions_that_stand_there_twice(tmp_path: Path) -> None:
    row = ROWS["siqa"]
    shuffled = {**row, "target_scores": {"eat": 0, "get up": 1, "fly": 0}}
    (one,) = read_questions(write_questions(tmp_path / "a.json", [row, row, shuffled]), GROUPS["siqa"])
    assert (one.text, one.choices[one.label], one.group) == ("Jo fell. What will Jo do?", "get up", "jo fell")
    other = {**row, "target_scores": {"eat": 1, "get up": 0, "fly": 0}}
    third = {**row, "input": "Jo sang. What will Jo do?"}
    (left,) = read_questions(write_questions(tmp_path / "a.json", [row, third, other]), GROUPS["siqa"])
    assert left.text == third["input"]  # which answer of the other is right cannot be told


@pytest.mark.packaged
def test_the_real_questions() -> None:
    folder = the_real(ARCHIVES["bigbench"])
    once = {"siqa": 1_925, "wikihow-goal": 1_699, "strategyqa": 2_289, "winowhy": 2_856}
    for task in BIG_BENCH:
        assert len(read_questions(folder / f"{task.name}.json", GROUPS[task.name])) == once[task.name]
        for form in task.prompt_forms:
            data = task.load_splits(task.sizes, 0, form=form)
            assert data.num_rows == {"train": data.num_rows["train"], "validation": 200, "test": 500}
            assert all(0 <= row["label"] < len(row["choices"]) for split in data.values() for row in split)
            prompts = [set(split["prompt"]) for split in data.values()]
            assert len(set.union(*prompts)) == sum(map(len, prompts))
        assert data.num_rows["train"] == task.train_examples


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A pretentious mess.", "...a  pretentious\tMESS...", True),
        ("Straße, clich\u00e9s of \uff21 film", "STRASSE cliche\u0301s of a film", True),
        ("one of the best films", "one of the worst films", False),
        ("!!!", "???", False),
    ],
)
def test_what_counts_as_the_same_sentence(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_duplicates_become_one_sentence_with_the_mean_rating(tmp_path: Path) -> None:
    rows = [(1.0, "A mess."), (3.0, "Good"), (-2.0, "...a mess!"), (-1.5, "A  MESS"), (-3, "good")]
    first, second = read_sentences(write_sentences(tmp_path / "f.txt", rows))
    assert (first.text, first.rating, first.is_clear) == ("A mess.", pytest.approx(-2.5 / 3), True)
    assert (second.text, second.rating, second.is_clear) == ("Good", 0, False)


@settings(deadline=None, max_examples=60)
@given(**SIZES, train=st.integers(1, 30), clear_only=st.booleans())
def test_splits_never_overlap(seed: int, test: int, validation: int, train: int, clear_only: bool) -> None:
    def split(*sizes: int | None, sentences: Any = SENTENCES, clear_only: bool = clear_only) -> Any:
        return split_sentences(sentences, SplitSizes(*sizes), seed, clear_only=clear_only)

    splits = split(train, validation, test)
    keys = [one.key for split in splits.values() for one in split]
    assert len(keys) == len(set(keys)) == train + validation + test
    assert not clear_only or all(one.is_clear for split in splits.values() for one in split)
    # the order of the file plays no part
    assert splits == split(train, validation, test, sentences=SENTENCES[::-1])
    # held-out sentences depend on no training size, and a smaller train is the start of a larger one
    whole = split(None, validation, test)
    assert (splits["validation"], splits["test"]) == (whole["validation"], whole["test"])
    assert splits["train"] == whole["train"][:train]
    # training sentences come from the other end: they stay where they are when more is held out
    assert split(train, validation + 5, test + 5)["train"] == splits["train"]
    # the other task, with the same sizes, puts no sentence of one split into another
    other = split(None, validation, test, clear_only=not clear_only)
    for name, part in whole.items():
        for other_name in set(other) - {name}:
            assert not {one.key for one in part} & {one.key for one in other[other_name]}
    assert split_sentences(SENTENCES, SplitSizes(None, validation, test), seed + 1, clear_only=clear_only) != whole


def test_sentiment_and_rating(files: Path) -> None:
    ratings = {one.text: one.rating for one in read_sentences(files / packaged.SENTENCES_FILE)}
    assert len(ratings) == 200
    for task in MOVIES:
        data = task.load(SplitSizes(40, 10, 20), 3)
        assert data.num_rows["train"] == 40
        assert all(not split.cache_files for split in data.values())
        for row in (row for split in data.values() for row in split):
            rating = ratings[row["text"]]
            assert row["label"] == (rating > 0 if task.labels else pytest.approx(rating, abs=1e-6))
            assert abs(rating) >= 0.5 or not task.labels


@pytest.mark.packaged
def test_the_real_sentences() -> None:
    sentences = read_sentences(the_real(ARCHIVES["vaderSentiment"]) / packaged.SENTENCES_FILE)
    assert len(sentences) == 10_603
    clear = [one for one in sentences if one.is_clear]
    assert (sum(one.rating > 0 for one in clear), sum(one.rating < 0 for one in clear)) == (4_995, 5_075)
    sentiment, rating = (task.load(SplitSizes(None, 1_000, 2_000), 0) for task in MOVIES)
    for task, data in zip(MOVIES, (sentiment, rating), strict=True):
        assert data.num_rows["train"] == task.train_examples
        keys = [normalise(text) for split in data.values() for text in split["text"]]
        assert len(keys) == len(set(keys))
    assert not set(sentiment["train"]["text"]) & set(rating["test"]["text"])


# ---------------------------------------------------------------- the registry


def test_a_typo_in_a_name() -> None:
    with pytest.raises(UserError, match="'movie-sentimant': unknown task; did you mean 'movie-sentiment'"):
        get_task("movie-sentimant")


def test_import_needs_no_extra() -> None:
    """The tasks can be listed with the core install alone."""
    code = """
import sys
for name in ("datasets", "platformdirs", "sklearn", "scipy"):
    sys.modules[name] = None
import aurora_lora.data, aurora_lora.data.models
from aurora_lora.errors import UserError
from aurora_lora.data import TASKS, SplitSizes
for task in TASKS.values():
    try:
        task.load(SplitSizes(1, 1, 1), 0)
    except UserError as error:
        assert "aurora-lora[train]" in str(error), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
