"""JSON files are read as they stand there, and the files of a folder as one, whatever fields each of them has."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.chat_template import without_none
from aurora_lora.data import SplitSizes
from aurora_lora.data.own.chat import with_text
from aurora_lora.data.own.kinds import OWN
from aurora_lora.data.own.source import OwnData, open_data
from aurora_lora.errors import UserError

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".json", ".jsonl.gz")


def write(folder: Path, suffix: str, **files: Rows) -> str:
    """Files of rows in a folder."""
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
        (gzip.open if suffix.endswith(".gz") else open)(folder / f"{name}{suffix}", "wb").write(text.encode())
    return str(folder)


def read(source: str) -> Rows:
    rows: Rows = open_data(OwnData(source))["train"].data.to_list()
    return rows


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_objects_over_several_lines(name: str, tmp_path: Path) -> None:
    rows = [{"id": number, "at": "2024-05-01"} for number in range(3)]
    (tmp_path / name).write_text(
        "\n".join(json.dumps(row, indent=1) for row in rows[: 1 if name == "rows.json" else 3])
    )
    assert read(name) == rows[: 1 if name == "rows.json" else 3]


# ---------------------------------------------------------------- several files

A, B = {"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}
UNIONS: dict[str, tuple[Rows, Rows]] = {
    "a further field": ([{"text": "a"}], [{"text": "b", "system": "x"}]),
    "a field less": ([{"text": "a", "system": "x"}], [{"text": "b"}]),
    "null throughout": ([{"text": "a", "n": None, "many": []}], [{"text": "b", "n": 1, "many": ["x"]}]),
    "null in the end": ([{"text": "a", "n": 1}], [{"text": "b", "n": None}]),
    "within objects": ([{"of": {"a": 1}}], [{"of": {"b": {"c": "x"}, "a": None}}]),
    "within messages": ([{"messages": [A]}], [{"messages": [A, {**B, "tool_calls": [{"name": "x"}]}]}]),
    "another order": ([{"text": "a", "messages": [A]}], [{"messages": [dict(reversed(A.items()))], "text": "b"}]),
    "numbers": ([{"n": 2}], [{"n": 1.5}]),
    "no rows": ([{"text": "a"}], []),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", UNIONS)
def test_files_of_a_folder_may_have_different_fields(case: str, suffix: str, tmp_path: Path) -> None:
    expected = [without_none(row) for rows in UNIONS[case] for row in rows]
    for number, files in enumerate((UNIONS[case], UNIONS[case][::-1])):
        found = read(write(tmp_path / f"rows{number}", suffix, a=files[0], b=files[1]))
        assert all(row.keys() == {name for rows in files for row in rows for name in row} for row in found)
        assert sorted(map(without_none, found), key=by_name) == sorted(expected, key=by_name)
    names = ("train", "test") if UNIONS[case][1] else ("train", "train-more")
    source = write(tmp_path / "splits", suffix, **dict(zip(names, UNIONS[case], strict=True)))
    found = [row for piece in open_data(OwnData(source)).values() for row in piece.data.to_list()]
    assert list(map(without_none, found)) == expected


def by_name(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"of": {"x": [1]}}, {"of": {"x": {"y": 1}}}, "'of.x' is a list in a.json and an object in b.json"),
        ({"messages": [A]}, {"messages": [{**A, "content": True}]}, "'messages.content' is a text in a.json and true"),
    ],
)
def test_a_field_of_two_types_is_named(one: Any, other: Any, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", ".json", a=[one], b=[other], c=[one])
    with pytest.raises(UserError) as caught:
        read(source)
    assert str(caught.value).startswith(f"{source}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_it", ["a", "b"])
def test_conversations_of_which_one_file_has_a_system(with_it: str, tmp_path: Path) -> None:
    turns = {name: [[{**A, "content": f"film {name} {n}"}, B] for n in range(10)] for name in ("a", "b")}
    files = {
        name: [{"messages": one, **({"system": "be kind"} if name == with_it else {})} for one in some]
        for name, some in turns.items()
    }
    splits = OWN["chat"].load(OwnData(write(tmp_path / "rows", ".jsonl", **files)), {}, SplitSizes(None, None, None), 0)
    found = [row["messages"] for split in splits.values() for row in split]
    system = {"role": "system", "content": "be kind"}
    expected = [[*([system] if name == with_it else []), *one] for name, some in turns.items() for one in some]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


# ---------------------------------------------------------------- what `datasets` writes anew

SAME: dict[str, Rows] = {
    "texts beside numbers": [
        {"text": f"{n}", "label": label}
        for n, label in enumerate(("1.0", 3, "true", "null", "[1]", "12", '"', 3.2e-11, None))
    ],
    "contents": [
        {"messages": [{**A, "content": [{"type": "text", "text": "7"}] if n else "7"}, {**B, "content": "42"}]}
        for n in range(3)
    ],
    "decimals beside objects": [
        {"text": f"{n}", "label": n + 3.2e-11, "meta": {"a": 1e-12} if n else {"b": "7", "c": ["8", 9]}}
        for n in range(3)
    ],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", SAME)
def test_values_of_mixed_type_stay_what_they_are(case: str, suffix: str, tmp_path: Path) -> None:
    rows = SAME[case]
    source = write(tmp_path / "rows", suffix, a=rows)
    piece = open_data(OwnData(source))["train"]
    assert list(piece.rows(list(rows[0]))) == rows
    several = open_data(OwnData(write(tmp_path / "several", suffix, a=rows, b=[{**rows[0], "more": 1}])))["train"]
    assert list(several.rows(list(rows[0]))) == [*rows, rows[0]]


@pytest.mark.parametrize("form", ["messages", "conversations", "calls"])
@pytest.mark.parametrize("with_system", [False, True])
def test_conversations_keep_texts_that_read_as_json(form: str, with_system: bool, tmp_path: Path) -> None:
    said = [[{"type": "text", "text": f"{n}"}] if n % 2 else f"{n}" for n in range(10)]
    turns = [[{**A, "content": one}, {**B, "content": "42"}] for one in said]
    if form == "calls":
        turns[0][1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"x": 3.2e-11}}}]
        turns[1][1]["tool_calls"] = [{"type": "function", "function": {"name": "g", "arguments": {"y": "7"}}}]
    shown = [[{"from": one["role"], "value": one["content"]} for one in some] for some in turns]
    rows = (
        [{"conversations": one} for one in shown] if form == "conversations" else [{"messages": one} for one in turns]
    )
    rows = [{**row, "system": "true"} for row in rows] if with_system else rows
    more: dict[str, Any] = {} if with_system else {"test": [{**rows[0], "system": "1"}]}
    source = write(tmp_path / "rows", ".jsonl", train=rows, **more)
    splits = OWN["chat"].load(OwnData(source), {}, SplitSizes(None, None, None), 0)
    system = [{"role": "system", "content": "true"}] if with_system else []
    found = [without_none(row["messages"]) for split in splits.values() for row in split]
    if not with_system:
        assert found.pop()[0] == {"role": "system", "content": "1"}
    texts = [[{**one, "content": with_text(one)["content"]} for one in some] for some in turns]  # parts are joined
    assert all(isinstance(one["content"], str) for some in texts for one in some)
    assert sorted(found, key=repr) == sorted(([*system, *one] for one in texts), key=repr)
