"""The loaders of the training set and the eight test sets, on copies in the hub's own form."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_copy
import pytest

from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.commonsense import COMMONSENSE, TEST_SETS
from aurora_lora.data.prompts import alpaca, key_of
from aurora_lora.errors import UserError

Hub = Callable[..., Path]
FILES = {
    "boolq": "boolq.json",
    "piqa": "piqa.json",
    "siqa": "social_i_qa.json",
    "hellaswag": "hellaswag.json",
    "winogrande": "winogrande.json",
    "arc-e": "ai2_arc.json",
    "arc-c": "ai2_arc.json",
    "obqa": "openbookqa.json",
}
# The instruction and the answer of every row.
EXPECTED = hub_copy.read("expected_prompts.json")


@pytest.mark.parametrize("name", list(FILES))
def test_a_test_set(name: str, hub: Hub) -> None:
    hub(hub_copy.read(FILES[name]))
    assert COMMONSENSE.load_test is not None
    rows = COMMONSENSE.load_test(name, None, 0)
    got = [(row["prompt"], key_of(row["choices"][row["label"]])) for row in rows]
    assert got == [(alpaca(instruction), key) for instruction, key in EXPECTED[name]]
    for row, (instruction, _) in zip(rows, EXPECTED[name], strict=True):
        keys = [key_of(choice) for choice in row["choices"]]
        assert "/".join(map(str, keys)) == instruction.rsplit(": ", 1)[1]


def test_the_training_set(hub: Hub) -> None:
    fixture = hub_copy.read("commonsense_170k.json")
    hub(fixture)
    data = COMMONSENSE.load(SplitSizes(None, 2, None), 0)
    rows = [*data["train"], *data["validation"]]
    given = fixture["configs"]["default"]["splits"]["train"]
    expected = {(alpaca(row["instruction"], row["input"]), row["output"]) for row in given}
    assert {(row["prompt"], row["choices"][row["label"]]) for row in rows} == expected
    assert len(rows) == len(given)
    assert all(len(row["choices"]) > 1 for row in data["validation"])
    assert {len(row["choices"]) for row in rows} == {1, 2, 3, 4, 5}
    again = COMMONSENSE.load(SplitSizes(3, 2, None), 0)
    assert again["validation"]["prompt"] == data["validation"]["prompt"]
    assert again["train"]["prompt"] == data["train"]["prompt"][:3]
    fewer = COMMONSENSE.load(SplitSizes(3, 1, None), 0)
    assert fewer["validation"]["prompt"] == data["validation"]["prompt"][:1]
    assert fewer["train"]["prompt"] == again["train"]["prompt"]
    assert COMMONSENSE.load(SplitSizes(None, 2, None), 1)["train"]["prompt"] != data["train"]["prompt"]
    with pytest.raises(UserError, match=r"task\.train_size: 6 is more than the 5 examples that are left"):
        COMMONSENSE.load(SplitSizes(6, 2, None), 0)
    with pytest.raises(UserError, match=r"nothing is left to train on of 7 rows"):
        COMMONSENSE.load(SplitSizes(None, 6, None), 0)


def test_chosen_test_sets(hub: Hub) -> None:
    hub(hub_copy.read("commonsense_170k.json"), hub_copy.read("winogrande.json"), hub_copy.read("ai2_arc.json"))
    task = get_task("commonsense")
    data = task.load_splits(SplitSizes(None, 1, 1), 0, ["arc-c", "winogrande"])
    assert data.num_rows == {"train": 6, "validation": 1, "arc-c": 1, "winogrande": 1}
    with pytest.raises(UserError, match="commonsense has no test set 'arc'"):
        task.load_splits(SplitSizes(None, 1, 1), 0, ["arc"])
    with pytest.raises(UserError, match=r"task\.test_size: 9 is more than the 3 examples of arc-c"):
        task.load_splits(SplitSizes(None, 1, 9), 0, ["arc-c"])


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("siqa", "label", "4"),
        ("obqa", "answerKey", "E"),
        ("boolq", "answer", None),
    ],
)
def test_rows_without_a_label(name: str, column: str, value: Any, hub: Hub) -> None:
    fixture = copy.deepcopy(hub_copy.read(FILES[name]))
    data = TEST_SETS[name].data
    config = next(iter(fixture["configs"].values())) if data.config is None else fixture["configs"][data.config]
    config["splits"][TEST_SETS[name].split][0][column] = value
    hub(fixture)
    assert COMMONSENSE.load_test is not None
    with pytest.raises(UserError, match=r", row 0: there is no label, or one that names no choice"):
        COMMONSENSE.load_test(name, None, 0)


def test_what_is_missing(hub: Hub) -> None:
    fixture = copy.deepcopy(hub_copy.read("commonsense_170k.json"))
    fixture["configs"]["default"]["splits"]["train"][3]["output"] = ""
    boolq = copy.deepcopy(hub_copy.read(FILES["boolq"]))
    for config in boolq["configs"].values():
        config["features"]["asked"] = config["features"].pop("question")
        for rows in config["splits"].values():
            for row in rows:
                row["asked"] = row.pop("question")
    hub(fixture, boolq)
    with pytest.raises(UserError, match="zwhe99/commonsense_170k, train, row 3: an empty instruction or output"):
        COMMONSENSE.load(SplitSizes(None, 1, None), 0)
    assert COMMONSENSE.load_test is not None
    with pytest.raises(UserError, match=r"boolq, validation, row 0: there is no column 'question'"):
        COMMONSENSE.load_test("boolq", None, 0)


def test_every_test_set_is_the_papers() -> None:
    """Table 9; it prints 1,830 for PIQA's 1,838."""
    assert list(COMMONSENSE.held_out.values()) == [3270, 1838, 1954, 10042, 1267, 2376, 1172, 500]
    assert COMMONSENSE.test_sets == tuple(TEST_SETS)
