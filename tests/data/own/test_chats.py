"""Conversations of own data: their formats, and splits in which equal ones, however they are written, are together."""

import json
from typing import Any

import pytest
from datasets import Dataset
from own_rows import load

from aurora_lora.data.own.chat import Question, as_ours, format_of, question_of
from aurora_lora.data.own.source import Piece
from aurora_lora.errors import UserError

pytest.importorskip("trl")

CALL = {"function": {"name": "look", "arguments": {"at": "x", "by": None}}, "type": "function"}


SAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fields in another order": (
        {"role": "assistant", "content": "It is {n}."},
        {"content": "It is {n}.", "role": "assistant"},
    ),
    "further fields": (
        {"role": "assistant", "content": "It is {n}."},
        {"role": "assistant", "content": "It is {n}.", "weight": 1, "name": "A", "tool_calls": None},
    ),
    "line breaks": (
        {"role": "assistant", "content": "It is {n}."},
        {"role": "assistant", "content": "It is\n{n}.\r\n"},
    ),
    "parts": (
        {"role": "assistant", "content": "It is {n}."},
        {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "{n}."}]},
    ),
    "calls": (
        {"role": "assistant", "content": "It is {n}.", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [dict(reversed(CALL.items()))], "content": "It is {n}."},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_the_same_conversation_is_never_in_two_splits(case: str) -> None:
    """However its messages are written."""

    def rows(message: dict[str, Any], count: int) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": "What is the number?"}
        texts = [json.dumps([asked, message]).replace("{n}", f"{n}") for n in range(count)]
        return [{"messages": json.loads(text)} for text in texts]

    here, there = SAID[case]
    splits = load("chat", rows(here, 30), {}, test_data=rows(there, 10))
    said = {name: {" ".join(row["messages"][1]["content"].split()) for row in split} for name, split in splits.items()}
    assert len(said["test"]) == 10
    assert not said["test"] & (said["train"] | said["validation"])
    assert splits.record["repeated"] == 10


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([{"type": "image"}], ".* is no text"),
        ([{"type": "text", "text": " "}], r"\(user\) is empty"),
    ],
)
def test_parts_that_are_no_text_are_refused(content: list[Any], why: str) -> None:
    """Most templates would leave them out, or write them as Python does."""
    rows = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]}] * 20
    with pytest.raises(UserError, match=f"line 1: message 1 of 'messages' {why}"):
        load("chat", rows, {})


ASKED: dict[tuple[str, ...], str] = {
    ("prompt", "completion", "text"): "prompt",
    ("instruction", "output", "prompt"): "instruction",
    ("text", "prompt"): "text",
    ("prompt", "instruction"): "instruction",  # no format is complete
}


@pytest.mark.parametrize("there", ASKED)
def test_a_row_is_asked_by_the_column_that_training_learns_from(there: tuple[str, ...]) -> None:
    row = {name: f"the {name}" for name in there}
    assert _words(question_of(row)) == f"the {ASKED[there]}"
    if "completion" in there or "output" in there or "text" in there:
        piece = Piece(Dataset.from_list([row]), "rows.jsonl")
        assert format_of(piece) == ASKED[there]


def _words(question: Question | str) -> str:
    return question if isinstance(question, str) else question.messages[-1]["content"]


def test_of_several_turns_the_last_answer_is_asked_for() -> None:
    turns = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")]
    for row in ({"messages": turns}, {"messages": [*turns, {"role": "user", "content": "thanks"}]}):
        assert question_of(row) == Question(row["messages"][:3] if len(row["messages"]) == 4 else row["messages"])


NAMES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "columns": (
        {"prompt": ("question",), "answer": ("reply",)},
        {"question": "How many?", "reply": "{n}", "prompt": "x", "messages": "y"},
        {"prompt": "How many?", "completion": "{n}"},
    ),
    "keys and roles": (
        {"messages": ("turns",), "message_keys": ("speaker", "says"), "roles": ("client", "agent", "rules")},
        {"turns": [{"speaker": one, "says": f"{one} {{n}}"} for one in ("rules", "client", "agent")], "text": "x"},
        {
            "messages": [
                {"role": role, "content": f"{one} {{n}}"}
                for role, one in (("system", "rules"), ("user", "client"), ("assistant", "agent"))
            ]
        },
    ),
    "roles of ShareGPT's": (
        {"roles": ("q", "a")},
        {"conversations": [{"from": "q", "value": "How many?"}, {"from": "a", "value": "{n}"}]},
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "{n}"}]},
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_columns_keys_and_roles_of_other_names(case: str) -> None:
    """In training, and where a row is to be answered."""
    columns, given, expected = NAMES[case]
    rows = [json.loads(json.dumps(given).replace("{n}", str(n))) for n in range(20)]
    splits = load("chat", rows, columns)
    wanted = [json.loads(json.dumps(expected).replace("{n}", str(n))) for n in range(20)]
    found = [{name: row[name] for name in expected} for split in splits.values() for row in split]
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    asked = question_of(as_ours(rows[7], columns), splits.record["format"])
    assert asked == (wanted[7]["prompt"] if case == "columns" else Question(wanted[7]["messages"][:-1]))
    with pytest.raises(UserError, match=r"task\.prompt: rows\.jsonl has no column 'queston'"):
        load("chat", rows, {"prompt": ("queston",)})
