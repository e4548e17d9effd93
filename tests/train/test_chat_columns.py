"""Columns beside the messages, in training and in answers: `system`, `tools`, `chat_template_kwargs`."""

import json
from pathlib import Path
from typing import Any

import chats
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.chat_template import without_none
from aurora_lora.data import SplitSizes
from aurora_lora.data.own.chat import Question, question_of
from aurora_lora.errors import UserError
from aurora_lora.train.data import keep_data
from aurora_lora.train.finished_run import TrainedRun
from aurora_lora.train.kinds import KINDS
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.predicting import load_predictor, predict_file
from aurora_lora.train.run import load_data

pytest.importorskip("trl")

TOOLS = [{"name": "actor", "parameters": {"type": "object", "default": None}}]


OTHER_TOOLS = [{"name": "director", "parameters": {"type": "array", "items": "film"}}]


ASIDE = {"aside": "scene"}


def data(folder: Path, base: Path, rows: list[Any]) -> Any:
    """The encoded splits of rows."""
    recipe = chats.read(folder, base)
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_data(recipe, load_tokenizer(str(base)))


def test_columns_that_one_file_alone_has(tmp_path: Path) -> None:
    """Rows without them are trained as rows whose columns say nothing."""
    base = chats.save_model(tmp_path / "base", chats.WITH_TOOLS + chats.GENERATION)
    turns = chats.conversations(40)
    further = {"system": "the scene", "tools": TOOLS, "chat_template_kwargs": ASIDE}
    for name, some in (("train", turns[:30]), ("test", turns[30:])):
        rows = [{"messages": one, **(further if name == "test" else {})} for one in some]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = [f"task.data={tmp_path / 'train.jsonl'}", f"task.test_data={tmp_path / 'test.jsonl'}"]
    recipe = chats.read(tmp_path, base, "messages", *files)
    found = load_data(recipe, load_tokenizer(str(base)))
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name in ("train", "test"):
        said = [tokenizer.decode(one["input_ids"]) for one in found.splits[name]]
        assert said
        assert all(("the scene" in one) == (name == "test") for one in said)
        assert all(("actor" in one.split()[:2]) == (name == "test") for one in said)


@pytest.mark.parametrize("form", ["messages", "prompt"])
def test_a_system_beside_messages(form: str, tmp_path: Path) -> None:
    base = chats.save_model(tmp_path / "base")
    given = []
    for number, turns in enumerate(chats.conversations(40)):
        row = {"messages": turns} if form == "messages" else {"prompt": turns[:1], "completion": turns[1:2]}
        given.append({**row, "system": "the scene" if number % 2 else None})
    given[1][form] = [{"role": "system", "content": "the plot"}, *given[1][form]]
    found = data(tmp_path, base, given)
    tokenizer = AutoTokenizer.from_pretrained(base)
    said = [tokenizer.decode(one["input_ids"]) for split in found.splits.values() for one in split]
    first = [" ".join(text.split()[2:4]) for text in said]  # after its role and a colon
    assert (first.count("the scene"), first.count("the plot")) == (19, 1)
    asked = question_of(given[3])
    assert isinstance(asked, Question)
    assert asked.messages[0] == {"role": "system", "content": "the scene"}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"prompt": "the film", "text": "scene", "instruction": "plot"}, "the film"),  # without its answer
        ({"text": "scene", "instruction": "plot"}, "scene"),  # it has no prompt
    ],
)
def test_a_run_knows_which_columns_it_was_trained_on(given: dict[str, str], asked: str, tmp_path: Path) -> None:
    base = chats.save_model(tmp_path / "base")
    rows = [{**chats.row(one, "texts"), "text": "a scene"} for one in chats.conversations(40)]
    keep_data(tmp_path, data(tmp_path, base, rows))
    run = TrainedRun(tmp_path, chats.read(tmp_path, base), {})
    assert run.columns == {"format": ("prompt",)}
    assert KINDS["chat"].asked(given, run.columns) == asked


CALLS = {"type": "function", "function": {"name": "find", "arguments": {"film": "a"}}}


OTHERS = {"type": "function", "function": {"name": "rate", "arguments": {"stars": 3, "of": "b"}}}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("form", ["messages", "prompt"])
def test_a_tool_call_has_the_fields_that_it_was_given(tmp_path: Path, suffix: str, form: str) -> None:
    """In Parquet an object has the fields of all others, as nulls, which a template would write."""
    rows = []
    for number, turns in enumerate(chats.conversations(40)):
        call = {"role": "assistant", "content": "", "tool_calls": [(CALLS, OTHERS)[number % 2]]}
        said = [*turns[:-1], call, {"role": "tool", "content": "good"}, turns[-1]]
        messages = {"messages": said} if form == "messages" else {"prompt": said[:-1], "completion": said[-1:]}
        rows.append({**messages, "tools": [(TOOLS, OTHER_TOOLS)[number % 2][0]]})
    path = tmp_path / f"calls.{suffix}"
    if suffix == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = chats.read(tmp_path, tmp_path, "messages", f"task.data={path}").task
    sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
    splits = section.definition.load_splits(sizes, section.split_seed, section.test_sets, section.prompt)
    for split in splits.values():
        for row in split:
            given = rows[row["row"]]
            assert row["tools"] in (given["tools"], without_none(given["tools"]))
            for name in ("messages", "prompt"):
                if name in given:
                    assert [one.get("tool_calls") for one in row[name]] == [
                        one.get("tool_calls") for one in given[name]
                    ]


@pytest.mark.slow
def test_tools_in_training_and_in_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = chats.save_model(tmp_path / "base", chats.WITH_TOOLS + chats.GENERATION)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    turns = chats.conversations(40)
    rows = [{"messages": one, "tools": TOOLS, "chat_template_kwargs": ASIDE} for one in turns]
    found = data(tmp_path, base, rows)
    for one in found.splits["train"]:
        assert tokenizer.decode(one["input_ids"]).split()[:2] == ["actor", "scene"]
    asked = question_of(rows[0])
    assert isinstance(asked, Question)
    options = asked.options
    assert (options["tools"][0]["name"], options["aside"]) == ("actor", "scene")

    predictor, seen = load_predictor(base), []
    model: Any = predictor.model
    own = model.generate

    def generate(**given: Any) -> Any:
        seen.extend(given["input_ids"].tolist())
        return own(**given)

    monkeypatch.setattr(model, "generate", generate)
    assert predict_file(predictor, str(tmp_path / "chats.jsonl"), tmp_path / "said.jsonl", batch_size=1).rows == 40
    expected = tokenizer.apply_chat_template(
        turns[0][:-1], tools=TOOLS, add_generation_prompt=True, return_dict=True, **ASIDE
    )
    assert seen[0] == expected["input_ids"][-len(seen[0]) :]
    assert tokenizer.decode(seen[0]).split()[:2] == ["actor", "scene"]


@pytest.mark.parametrize(
    ("column", "message"),
    [({"tools": "[{"}, "'tools' is no JSON: Expecting property name")],
)
def test_what_is_no_tools(tmp_path: Path, column: Any, message: str) -> None:
    base = chats.save_model(tmp_path / "base")
    with pytest.raises(UserError, match=f"chats.jsonl, line 1: {message}"):
        data(tmp_path, base, [{"messages": one, **column} for one in chats.conversations(40)])
    asked = ["predict", str(base), str(tmp_path / "chats.jsonl"), "-o", str(tmp_path / "said.jsonl")]
    done = CliRunner().invoke(cli.app, asked)
    assert (done.exit_code, f"chats.jsonl, line 1: {message}" in done.stderr) == (2, True)
