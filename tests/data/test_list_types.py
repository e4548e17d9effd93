"""What lists are of, in each way that versions of `datasets` write it."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value

from aurora_lora.data.list_types import item_type
from aurora_lora.data.own.held_rows import _depth
from aurora_lora.data.vision import class_names

LABEL = ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ([LABEL], LABEL),
        (Sequence(LABEL), LABEL),
        (Features({"x": [LABEL]})["x"], LABEL),
        ([{"a": Value("string")}], {"a": Value("string")}),
        (LABEL, None),
        (Value("string"), None),
        (Image(), None),
        ({"a": Value("string")}, None),
        (None, None),
    ],
)
def test_what_a_list_is_of(feature: Any, expected: Any) -> None:
    assert item_type(feature) == expected


@pytest.mark.parametrize("several", [[LABEL], Sequence(LABEL), LABEL])
def test_names_of_classes_also_in_lists(several: Any) -> None:
    """A list stays a Python list in the features of `datasets` before version 4."""
    assert class_names(SimpleNamespace(features={"label": several})) == ("cat", "dog")
    data = Dataset.from_dict({"label": [0 if several is LABEL else [0, 1]]}, features=Features({"label": several}))
    assert class_names(data) == ("cat", "dog")


def test_objects_within_lists_are_counted() -> None:
    call = {"name": Value("string"), "arguments": {"city": Value("string")}}
    assert _depth([{"role": Value("string"), "tool_calls": [call]}]) == 3
    assert _depth([Value("string")]) == 0
