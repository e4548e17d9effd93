"""The kinds of own data: their mistakes as one line with the row, and rows that contradict each other."""

from typing import Any

import pytest
from own_rows import QUESTION, TEXT, labelled, load

DIFFER: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "classification": (
        labelled(["a", "b"] * 10),
        [{"text": "Text 3!", "label": "b"}],
        [{"text": "Text 3!", "label": "a"}],
    ),
    "regression": (labelled([1, 2] * 10), [{"text": "text 3", "label": 2}], [{"text": "text 3", "label": 2.5}]),
    "multi-label": (
        labelled([["a", "b"], ["b"]] * 10),
        [{"text": "text 2", "label": ["b", "a"]}],
        [{"text": "text 2", "label": ["a"]}],
    ),
    "choices": (
        [{"question": f"{n}", "options": ["yes", "no"], "answer": n % 2} for n in range(20)],
        [{"question": "3", "options": ["No", "yes"], "answer": 0}],
        [{"question": "3", "options": ["No", "yes"], "answer": 1}],
    ),
}


@pytest.mark.parametrize("kind", DIFFER)
def test_the_same_example_with_another_label_is_counted(kind: str) -> None:
    rows, same, other = DIFFER[kind]
    columns = QUESTION if kind == "choices" else TEXT
    for more, count in ((same, 0), (other, 1)):
        record = load(kind, [*rows, *more], columns).record
        assert (record["repeated"], record["contradict"]) == (1, count)


VECTORS = r"task\.label: 'label' has 0 and 1 in place of labels"
