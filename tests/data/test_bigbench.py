"""The packaged multiple-choice tasks: reading, splitting, prompts; the real files where they can be had."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.data import SplitSizes, bigbench, get_task
from aurora_lora.data.bigbench import BIG_BENCH, GROUPS, Item, read_questions, split_questions
from aurora_lora.data.fetch import OfflineError, fetch
from aurora_lora.data.prompts import alpaca
from aurora_lora.errors import UserError

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


def _write(path: Path, rows: list[Any]) -> Path:
    """In the form of BIG-bench's task.json (github.com/google/BIG-bench, docs/doc.md)."""
    path.write_text(json.dumps({"canary": "-", "name": path.stem, "examples": rows}))
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the place of the fetched ones."""
    monkeypatch.setattr(bigbench, "fetch", lambda _: tmp_path)
    for name, row in ROWS.items():
        rows = [{**row, "input": f"{n}. {row['input']}"} for n in range(12)]
        _write(tmp_path / f"{name}.json", rows)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "form", "prompt", "choices"),
    [
        ("siqa", "cloze", "Question: {}Jo fell. What will Jo do?\nAnswer:", [" get up", " fly", " eat"]),
        (
            "siqa",
            "instruction",
            "Please choose the correct answer to the question: {}Jo fell. What will Jo do?\n\n"
            "Answer1: get up Answer2: fly Answer3: eat\n\nAnswer format: answer1/answer2/answer3",
            ["the correct answer is answer1", "the correct answer is answer2", "the correct answer is answer3"],
        ),
        (
            "wikihow-goal",
            "cloze",
            "{}The most reasonable goal of 'Boil water' is",
            [" Fly a Kite", " Cook Pasta", " Buy Shoes", " Sleep Well"],
        ),
        ("strategyqa", "cloze", "Question: {}Can a crow read?\nAnswer:", [" Yes", " No"]),
        (
            "strategyqa",
            "instruction",
            "Please answer the following question with true or false, question: {}Can a crow read?\n\n"
            "Answer format: true/false",
            ["the correct answer is true", "the correct answer is false"],
        ),
        (
            "winowhy",
            "cloze",
            "{}Ann thanked Eve because she had helped. The 'she' refers to eve because Eve had helped. "
            "The above reasoning is",
            [" correct", " incorrect"],
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
    data = get_task(name).load_splits(SplitSizes(None, 3, 4), 0, form=form)
    assert data.num_rows == {"train": 5, "validation": 3, "test": 4}
    rows = [row for split in data.values() for row in split]
    wanted = {prompt.format(f"{n}. ") for n in range(12)}
    assert {row["prompt"] for row in rows} == ({alpaca(one) for one in wanted} if form == "instruction" else wanted)
    (right,) = (index for index, value in enumerate(ROWS[name]["target_scores"].values()) if value)
    for row in rows:
        assert row["choices"] == choices
        assert row["label"] == right


def test_the_first_form_is_the_default(files: Path) -> None:
    for task in BIG_BENCH:
        assert task.prompt_forms == ("cloze", "instruction")
        sizes = SplitSizes(2, 3, 4)
        default, cloze = task.load_splits(sizes, 0), task.load_splits(sizes, 0, form="cloze")
        assert default["test"]["prompt"] == cloze["test"]["prompt"]
        with pytest.raises(UserError, match=r"task.validation_size and task.test_size must be given"):
            task.load_splits(SplitSizes(None, None, None), 0)


def _questions(groups: int = 60) -> list[Item]:
    """Groups of one to four questions."""
    return [
        Item(f"question {group}.{n}", ("a", "b"), 0, f"group {group}")
        for group in range(groups)
        for n in range(1 + group % 4)
    ]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**40),
    test=st.integers(1, 50),
    validation=st.integers(1, 50),
    train=st.none() | st.integers(1, 30),
)
def test_no_group_is_in_two_splits(seed: int, test: int, validation: int, train: int | None) -> None:
    questions = _questions()
    splits = split_questions(questions, SplitSizes(train, validation, test), seed)
    assert [len(splits["validation"]), len(splits["test"])] == [validation, test]
    assert train is None or len(splits["train"]) == train
    groups = [{one.group for one in split} for split in splits.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert splits == split_questions(questions[::-1], SplitSizes(train, validation, test), seed)
    whole = split_questions(questions, SplitSizes(None, validation, test), seed)
    assert (splits["validation"], splits["test"]) == (whole["validation"], whole["test"])
    assert splits["train"] == whole["train"][: len(splits["train"])]


def test_reasons_that_are_given_for_one_sentence_are_a_group() -> None:
    sentence = "Ann and Jo thanked the nurses because they had helped."
    reasons = ("The 'they' refers to the nurses because nurses help.", "The 'they' refer to ann and jo because I know.")
    assert {GROUPS["winowhy"](f"{sentence} {reason}") for reason in reasons} == {sentence}


def test_training_questions_stay_whatever_is_held_out() -> None:
    little, much = (split_questions(_questions(), SplitSizes(10, *sizes), 0) for sizes in ((10, 10), (30, 40)))
    assert little["train"] == much["train"]


def test_sizes_that_exceed_the_data() -> None:
    with pytest.raises(
        UserError,
        match=r"size: 100 and task\.test_size: 100 leave nothing .* there are 150 questions",
    ):
        split_questions(_questions(), SplitSizes(None, 100, 100), 0)
    with pytest.raises(UserError, match=r"task\.train_size: 149 is more than the .* questions that are left"):
        split_questions(_questions(), SplitSizes(149, 1, 1), 0)
    assert split_questions(_questions(), SplitSizes(None, 10, 10), 0) != split_questions(
        _questions(), SplitSizes(None, 10, 10), 1
    )


@pytest.mark.parametrize(
    "row",
    [
        {"input": "A", "target_scores": {"a": 1}},
        {"input": "A", "target_scores": {"a": 1, "b": 1}},
        {"input": "A", "target_scores": {"a": 0, "b": 0}},
        {"input": "A", "target_scores": {"a": 1, " ": 0}},
        {"input": "A", "target_scores": {"a": 1, "b": 0.5}},
        {"input": " ", "target_scores": {"a": 1, "b": 0}},
        {"input": "A", "target": "a"},
        {"target_scores": {"a": 1, "b": 0}},
        "A",
    ],
)
def test_malformed_rows(tmp_path: Path, row: Any) -> None:
    path = _write(tmp_path / "task.json", [ROWS["siqa"], row])
    with pytest.raises(UserError, match=r"task.json, example 1: expected an input and choices, one of them right; got"):
        read_questions(path, GROUPS["siqa"])


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"examples": []}')
    with pytest.raises(UserError, match="holds no questions"):
        read_questions(tmp_path / "task.json", GROUPS["siqa"])
    for text in ("{", "[]", "{}"):
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(UserError, match=r"is no task\.json of BIG-bench"):
            read_questions(tmp_path / "task.json", GROUPS["siqa"])


def test_duplicates(tmp_path: Path) -> None:
    row = ROWS["siqa"]
    shuffled = {**row, "target_scores": {"eat": 0, "get up": 1, "fly": 0}}
    (one,) = read_questions(_write(tmp_path / "a.json", [row, row, shuffled]), GROUPS["siqa"])
    assert (one.text, one.choices[one.label], one.group) == ("Jo fell. What will Jo do?", "get up", "jo fell")
    other = {**row, "target_scores": {"eat": 1, "get up": 0, "fly": 0}}
    third = {**row, "input": "Jo sang. What will Jo do?"}
    (left,) = read_questions(_write(tmp_path / "a.json", [row, third, other]), GROUPS["siqa"])
    assert left.text == third["input"]  # which answer of the other is right cannot be told


@pytest.mark.packaged
def test_the_real_questions() -> None:
    try:
        folder = fetch(bigbench.BIGBENCH)
    except OfflineError as error:
        pytest.skip(str(error))
    counts = {"siqa": 1_954, "wikihow-goal": 1_703, "strategyqa": 2_290, "winowhy": 2_865}
    once = {"siqa": 1_925, "wikihow-goal": 1_699, "strategyqa": 2_289, "winowhy": 2_856}
    for task in BIG_BENCH:
        path = folder / f"{task.name}.json"
        assert len(json.loads(path.read_text())["examples"]) == counts[task.name]
        assert len(read_questions(path, GROUPS[task.name])) == once[task.name]
        for form in task.prompt_forms:
            data = task.load_splits(task.sizes, 0, form=form)
            assert (data.num_rows["validation"], data.num_rows["test"]) == (200, 500)
            assert data.num_rows["train"] > 950
            assert all(0 <= row["label"] < len(row["choices"]) for split in data.values() for row in split)
            prompts = [set(split["prompt"]) for split in data.values()]
            assert len(set.union(*prompts)) == sum(map(len, prompts))
