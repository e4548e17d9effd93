"""The kinds of own data: their mistakes as one line with the row, and rows that contradict each other."""

from collections.abc import Callable
from typing import Any

import pytest
from own_rows import ALL, QUESTION, TEXT, labelled, load, write_rows

from aurora_lora.data.own.kinds import OWN
from aurora_lora.data.own.source import OwnData
from aurora_lora.errors import UserError

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
MISTAKES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no text": ("classification", [*labelled(["a", "b"] * 5), {"text": " ", "label": "a"}], r"row 11: 'text' is empty"),
    "no text either": ("classification", [*labelled(["a", "b"] * 5), {"label": "a"}], r"row 11: 'text' is empty"),
    "a number": (
        "classification",
        [{"text": 5, "label": n % 2} for n in range(9)],
        r"row 1: 'text' is 5, which is no text",
    ),
    "no label": ("classification", labelled(["a", "b", None] * 5), r"row 3: it has no label"),
    "fractions": ("classification", labelled([1.5, 2.5] * 5), r"row 1: the label 1\.5 .*is this regression\?"),
    "no number for a class": (
        "classification",
        labelled([1.0, 0.0] * 5 + [float("nan")]),
        r"row 11: the label nan is no text and no whole number",
    ),
    "one class": (
        "classification",
        labelled(["a"] * 9),
        r"rows\.jsonl has one label only, 'a': there is nothing to tell",
    ),
    "one example": (
        "classification",
        labelled(["a", "b"] * 5 + ["c"]),
        r"rows\.jsonl, row 11: the label 'c' has one example, and training and testing need one each: add examples",
    ),
    "many": (
        "classification",
        labelled(list(range(9))),
        r"row 1: the label '0' has one example \(as have 8 more\).*regr",
    ),
    "no number": ("regression", labelled([1, 2, 3, "four"]), r"row 4: the label 'four' is no number"),
    "no number either": ("regression", labelled([1, 2, 3, "1_000"]), r"row 4: the label '1_000' is no number"),
    "switches": (
        "regression",
        labelled([True, False] * 5),
        r"row 1: the label True is no number: is this classification\?",
    ),
    "one number": (
        "regression",
        labelled([1.5] * 9),
        r"rows\.jsonl has one label only, 1\.5: there is nothing to tell",
    ),
    "one switch": (
        "multi-label",
        labelled([0, "1", True] * 5),
        VECTORS,
    ),
    "vectors": ("multi-label", labelled([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]] * 5), VECTORS),
    "vectors of switches": ("multi-label", labelled([[True, False, True], None, [False, False, False]] * 5), VECTORS),
    "vectors as texts": ("multi-label", labelled(["[0, 1, 1]", "1, 0, 0"] * 5), VECTORS),
    "half a list": (
        "multi-label",
        labelled(["a", "['a', 'b'"] * 5),
        r"row 2: the labels .* look like a list",
    ),
    "two in one": ("multi-label", labelled(["a", "['a', 'b' 'c']"] * 5), r"row 2: the labels .* look like a list"),
    "a database's": ("multi-label", labelled(["a", "{a,b}"] * 5), r"row 2: the labels '{a,b}' look like a list"),
    "too large for float32": (
        "regression",
        labelled([1, 2, 3, 1e39]),
        r"row 4: the label 1e\+39 is beyond 3\.4e\+38, where float32 ends",
    ),
    "nan": ("regression", labelled([1, 2, 3, "nan"]), r"row 4: the label 'nan' is not finite"),
    "one option": ("choices", [{"question": "q", "options": ["a"], "answer": 0}] * 9, r"row 1: there are 1 options"),
    "a blank option": (
        "choices",
        [{"question": "q", "options": {"text": ["a", None, "b"], "label": ["p", "q", "r"]}, "answer": "q"}] * 9,
        r"row 1: the answer 'q' is none of the options: it must be one of them, A to C",
    ),
    "no list": ("choices", [{"question": "q", "options": "a", "answer": 0}] * 9, r"row 1: the options are no list"),
    "no answer": (
        "choices",
        [{"question": "q", "options": ["yes", "no"], "answer": "2"}] * 9,
        r"row 1: the answer '2' is none of the options: it must be one of them, A to B, or 0 to 1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    kind, rows, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as raised:
        load(kind, rows, QUESTION if kind == "choices" else TEXT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [kind.name for kind in OWN.values() if kind.columns])
def test_a_column_that_is_not_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows("rows.jsonl", [{"txt": "a", "n": 1}])
    columns = OWN[kind].columns
    field = next(iter(columns))
    load: Callable[..., Any] = OWN[kind].load
    with pytest.raises(
        UserError, match=rf"task\.{field}: rows\.jsonl has no column '{columns[field][0]}' \(it has 'txt', 'n'"
    ):
        load(OwnData(data), columns, ALL, 0)
