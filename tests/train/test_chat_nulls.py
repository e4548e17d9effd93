"""Nulls in tool calls and tools: in none of training and answers."""

import json
from pathlib import Path
from typing import Any

import chats
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from transformers import ByT5Tokenizer

from aurora_lora.chat_template import without_none
from aurora_lora.data import SplitSizes
from aurora_lora.data.own.chat import opening, question_of
from aurora_lora.data.own.held_rows import as_given
from aurora_lora.data.own.source import open_file
from aurora_lora.train.chat_answers import prompt_ids
from aurora_lora.train.chat_data import _Preparation
from aurora_lora.train.kinds.chat import CHAT

pytest.importorskip("trl")
TOOL = {"name": "actor", "parameters": {"type": "object", "default": None}}
OTHER_TOOL = {"name": "director", "parameters": {"type": "array", "items": "film"}}
TYPED = (
    "{% if tools %}{{ tools | tojson + '\\n' }}{% endif %}{% for m in messages %}{{ m.role + ': ' }}"
    "{{ m | tojson }}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""It writes everything that it is given."""


def _calling(asked: str, arguments: Any, *, tool: Any = None, **further: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "good", **further},
        {"role": "assistant", "content": "fine"},
    ]
    return {"messages": said, "tools": [tool or TOOL]}


def _same_fields(row: dict[str, Any]) -> dict[str, Any]:
    """With every field in every message, so that Arrow holds them as objects."""
    said = [{"tool_calls": None, **one} for one in row["messages"]]
    return {**row, "messages": [{name: one[name] for name in ("role", "content", "tool_calls")} for one in said]}


@pytest.mark.parametrize("form", ["messages", "prompt", "conversations", "alpaca"])
@pytest.mark.parametrize(
    "rows",
    [
        [_calling("film", {"x": 1, "y": None})],
        [_calling("film", {"x": 1, "y": None}), _calling("film", {"x": 1})],
        [_same_fields(_calling("film", {"x": 1, "y": None}))],
        [
            _same_fields(_calling("film", {"x": 1, "y": None})),
            _same_fields(_calling("film", {"z": [{"x": None}, None]})),
        ],
        [_calling("film", {"x": 1}, tool={"name": "actor", "parameters": {"default": None, "enum": [None, 1]}})],
        [_calling("film", {"x": 1}), _calling("film", {"x": 1}, tool=OTHER_TOOL, name="find")],
    ],
    ids=["in every row", "in some", "all fields", "all fields, several", "tools", "other tools"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_null_is_the_same_in_training_and_in_answers(tmp_path: Path, suffix: str, rows: list[Any], form: str) -> None:
    """Parquet has them in the place of every missing field, and JSON where the rows are alike."""
    given = []
    for number in range(20):
        row = json.loads(json.dumps(rows[number % len(rows)]))
        said = row.pop("messages")
        said[0]["content"] = f"film {number}"
        if form == "alpaca":
            given.append({"instruction": f"film {number}", "output": "fine", **row})
        else:
            several = {"prompt": said[:-1], "completion": said[-1:]} if form == "prompt" else {form: said}
            given.append({**several, **row})
    path = tmp_path / f"calls.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    elif suffix == "json":
        path.write_text(json.dumps(given))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    splits = _splits(tmp_path, f"task.data={path}")
    asked = [CHAT.asked(row, {}) for row in open_file(str(path), None).data]
    seen = 0
    for split in splits.values():
        for row in split:
            expected = question_of(without_none(given[row["row"]]))
            assert opening(row) == asked[row["row"]] == expected
            seen += 1
    assert seen == 20


def _splits(folder: Path, *overrides: str) -> dict[str, Dataset]:
    section = chats.read(folder, folder, "messages", *overrides).task
    sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
    return dict(section.definition.load_splits(sizes, section.split_seed, section.test_sets, section.prompt))


def test_what_is_trained_begins_with_what_is_asked(tmp_path: Path) -> None:
    """Also of a file of one row, which Arrow holds otherwise."""
    tokenizer: Any = ByT5Tokenizer()
    tokenizer.chat_template = TYPED
    rows = [_calling(f"film {n}", {"x": n, "y": None} if n % 2 else {"x": n}) for n in range(20)]
    path, alone = tmp_path / "calls.jsonl", tmp_path / "alone.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = _splits(tmp_path, f"task.data={path}")["train"]
    for row, made in zip(train, _Preparation(tokenizer, True, 0).tokens(train), strict=True):
        text = tokenizer.decode(made["input_ids"])
        alone.write_text(json.dumps(rows[row["row"]]) + "\n")
        (asked,) = open_file(str(alone), None).data
        assert text.startswith(tokenizer.decode(prompt_ids(tokenizer, CHAT.asked(asked, {}))))
        assert "null" not in text


def test_tools_of_several_fields_that_one_file_alone_has(tmp_path: Path) -> None:
    for name, more in (("train", {}), ("test", {"tools": [TOOL, {"name": "director"}]})):
        rows = [{"messages": one, **more} for one in chats.conversations(20, seed=len(name))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = _splits(tmp_path, f"task.data={tmp_path / 'train.jsonl'}", f"task.test_data={tmp_path / 'test.jsonl'}")
    assert set(map(str, splits["train"]["tools"])) == {"None"}
    assert splits["test"][0]["tools"] == without_none([TOOL, {"name": "director"}])


def test_columns_that_are_json_as_a_whole_stay_what_they_are() -> None:
    """Such as tools, a list in one row and its text in another, which the template is given alike."""
    datasets = pytest.importorskip("datasets", minversion="4.5")
    rows = [{"tools": [TOOL]}, {"tools": json.dumps([TOOL])}, {"tools": [OTHER_TOOL]}]
    told = {"tools": datasets.Json(), "chat_template_kwargs": datasets.Json()}
    whole = [{**row, "chat_template_kwargs": {"a": 1}} for row in rows]
    held = [{name: json.dumps(value) for name, value in row.items()} for row in whole]
    split = datasets.Dataset.from_list(held).cast(datasets.Features(told))
    found = as_given(split)
    assert [row["tools"] for row in found] == [without_none(row["tools"]) for row in split]
    assert [row["chat_template_kwargs"] for row in found] == [{"a": 1}] * 3


def test_parts_of_text_are_joined_by_earlier_versions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no type for JSON."""
    said = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    split = Dataset.from_list([{"messages": said}] * 2)
    monkeypatch.delattr("datasets.Json", raising=False)
    assert as_given(split)[0]["messages"][0]["content"] == "ab"
    plain = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}])
    assert as_given(plain) is plain
