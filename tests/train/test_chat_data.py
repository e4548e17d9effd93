"""Tokens and labels of conversations in batches: those of one conversation at a time, and TRL's own cut."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chats
import multiprocess
import numpy as np
import pytest
from datasets import Dataset

from aurora_lora.deploy.inputs import IGNORED
from aurora_lora.train import chat_data
from aurora_lora.train.build import load_data, load_processor
from aurora_lora.train.chat_data import _Preparation
from aurora_lora.train.chat_format import set_template
from aurora_lora.train.chat_labels import label_answers
from aurora_lora.train.data import notes
from aurora_lora.train.models import load_tokenizer

pytest.importorskip("trl")

WORDS = ("the", "film", "was", "good", "bad", ":", "plot", "very", "of")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a template that does not mark the answers."""
    template = chats.WITH_TOOLS + chats.PLAIN
    return load_tokenizer(str(chats.save_model(tmp_path_factory.mktemp("plain"), template)))


def _rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        said = [{"role": "system", "content": "the film"}] if number % 3 == 0 else []
        said += [{"role": "assistant", "content": "good"}] if number % 7 == 0 else []  # answers nothing
        for _ in range(draw.randint(1, 4)):
            for role in ("user", *["assistant"] * draw.randint(1, 2)):
                said.append({"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))})
        said += [{"role": "user", "content": "was it good"}] if number % 5 == 0 else []
        aside = {"aside": "scene"} if number % 4 == 0 else None
        rows.append({"messages": said, "chat_template_kwargs": aside})
    return rows


def _one_at_a_time(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """The definition: what an answer adds to the conversation before it, without blanks at its end; of one that comes
    first, what follows its header.
    """
    more = row["chat_template_kwargs"] or {}

    def ids(messages: list[Any], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, return_dict=True, **more, **options)["input_ids"])

    def before(content: str) -> list[int]:
        text = str(tokenizer.apply_chat_template(row["messages"], tokenize=False, **more))
        return list(tokenizer(text[: text.index(content)], add_special_tokens=False)["input_ids"])

    messages = row["messages"]
    whole = ids(messages)
    labels = [IGNORED] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(ids(messages[:number], add_generation_prompt=True) if number else before(message["content"]))
            end = len(ids(messages[: number + 1]))
            while end > start and not tokenizer.decode(whole[end - 1 : end]).strip():
                end -= 1
            labels[start:end] = whole[start:end]
    return {"input_ids": whole, "labels": labels}


def test_answers_are_found_in_batches_as_one_at_a_time(tokenizer: Any, tmp_path: Path) -> None:
    rows = _rows(60)
    prepared = _Preparation(tokenizer, True, 0).tokens(Dataset.from_list(rows))
    expected = [_one_at_a_time(row, tokenizer) for row in rows]
    assert prepared.to_list() == expected
    assert any(label != IGNORED for one in expected for label in one["labels"])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = [one.tolist() for one in label_answers(columns, tokenizer)["labels"]]
    assert found == [one["labels"] for one in expected]


def _on_disk(folder: Path) -> Dataset:
    Dataset.from_list(_rows(60)).save_to_disk(folder)
    return Dataset.load_from_disk(folder)


def test_processes_share_the_rows_and_it_is_done_once(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _on_disk(tmp_path / "rows")
    alone = _on_disk(tmp_path / "others")
    expected = _Preparation(tokenizer, True, 0).tokens(alone)
    monkeypatch.setattr(chat_data, "ROWS_EACH", 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # `datasets` puts another in its place
    assert [chat_data._processes(count) for count in (59, 60, 10_000)] == [None, 2, 8]
    made = _Preparation(tokenizer, True, 0).tokens(data)
    assert (made.to_list(), made.features) == (expected.to_list(), expected.features)
    files = [Path(one["filename"]) for one in made.cache_files]
    written = [file.stat().st_mtime_ns for file in files]
    for rows_each in (30, 1000):  # with as many processes, and alone
        monkeypatch.setattr(chat_data, "ROWS_EACH", rows_each)
        again = _Preparation(tokenizer, True, 0).tokens(data)
        assert [Path(one["filename"]) for one in again.cache_files] == files
        assert ([file.stat().st_mtime_ns for file in files], len(files)) == (written, 2)


def test_one_process_where_there_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert chat_data._processes(100_000) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert chat_data._processes(100_000) == 2
    monkeypatch.setattr(multiprocess, "get_start_method", lambda allow_none=False: "spawn")
    assert chat_data._processes(100_000) is None


@pytest.mark.parametrize("max_length", [3, 12, 30, 1000])
def test_the_cut_is_trl_s(tokenizer: Any, max_length: int) -> None:
    prepare = _Preparation(tokenizer, True, 0)
    tokens = prepare.tokens(Dataset.from_list(_rows(60)))
    silent = tokens.map(
        lambda row, at: {"labels": [IGNORED] * len(row["labels"])} if at % 9 == 0 else {}, with_indices=True
    )
    for data in (tokens, silent, tokens.select(np.arange(59, -1, -1))):
        assert prepare.cut(data, max_length).to_list() == prepare._run(data, max_length=max_length).to_list()


@pytest.mark.parametrize(("template", "answers_only"), [(chats.GENERATION, True), (chats.PLAIN, False)])
@pytest.mark.parametrize("form", ["messages", "prompt"])
@pytest.mark.parametrize("missing", [{0, 3, 4}, {1, 2, 5}, set(range(6)), set()])
def test_rows_without_options_of_the_template(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, answers_only: bool, form: str, missing: set[int]
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", chats.WITH_TOOLS + template)
    given = [None if number in missing else {"aside": "scene"} for number in range(6)]
    turns = chats.conversations(6)
    rows = [{**chats.row(one, form), "chat_template_kwargs": more} for one, more in zip(turns, given, strict=True)]
    made = _Preparation(tokenizer, answers_only, 0).tokens(Dataset.from_list(rows))
    expected = [
        tokenizer.apply_chat_template(one, return_dict=True, **(more or {}))["input_ids"]
        for one, more in zip(turns, given, strict=True)
    ]
    assert made["input_ids"][:] == expected
    if not answers_only and form == "messages":
        assert made["labels"][:] == expected


def test_a_template_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors put one at the beginning of a file: it is no part of the template."""
    path, tokenizer = tmp_path / "chat.jinja", SimpleNamespace(chat_template=None)
    path.write_text("{{ messages }}", encoding="utf-8-sig")
    set_template(tokenizer, str(path))  # type: ignore[arg-type]
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("form", ["messages", "prompt"])
def test_a_prompt_that_ends_as_no_answer_begins_is_told(tmp_path: Path, form: str) -> None:
    """Templates of models that reason: they leave the thoughts out of an answer, and begin them in a prompt."""
    template = chats.GENERATION.replace("'assistant : ' }}{% endif %}", "'assistant : plot ' }}{% endif %}")
    assert template != chats.GENERATION
    found: dict[str, dict[str, Any]] = {}
    for name, one in (("as it is", chats.GENERATION), ("thinks", template)):
        (tmp_path / name).mkdir()
        base = chats.save_model(tmp_path / name / "base", one)
        recipe = chats.read(tmp_path / name, base, form)
        found[name] = load_data(recipe, load_processor(recipe.base, recipe.task.definition)).record or {}
    assert "asked_otherwise" not in found["as it is"]
    assert found["thinks"]["asked_otherwise"].strip() == "plot"
    (told,) = [line for line in notes(found["thinks"]) if "behind which no answer is trained" in line]
    assert "the chat template ends a prompt with" in told
