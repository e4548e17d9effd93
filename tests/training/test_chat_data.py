"""Tokens and labels of conversations in batches: those of one conversation at a time, and TRL's own cut."""

import random
from pathlib import Path
from typing import Any

import chats
import numpy as np
import pytest
from datasets import Dataset

from aurora_lora.training.batches import IGNORED
from aurora_lora.training.chat_data import _Preparation
from aurora_lora.training.chat_labels import label_answers
from aurora_lora.training.models import load_tokenizer

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
    """The definition: what an answer adds to the conversation before it, without blanks at its end."""
    more = row["chat_template_kwargs"] or {}

    def ids(messages: list[Any], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, return_dict=True, **more, **options)["input_ids"])

    messages = row["messages"]
    whole = ids(messages)
    labels = [IGNORED] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(ids(messages[:number], add_generation_prompt=True)) if number else 0
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
    assert label_answers(columns, tokenizer)["labels"] == [one["labels"] for one in expected]


@pytest.mark.parametrize("max_length", [3, 12, 30, 1000])
def test_the_cut_is_trl_s(tokenizer: Any, max_length: int) -> None:
    prepare = _Preparation(tokenizer, True, 0)
    tokens = prepare.tokens(Dataset.from_list(_rows(60)))
    silent = tokens.map(
        lambda row, at: {"labels": [IGNORED] * len(row["labels"])} if at % 9 == 0 else {}, with_indices=True
    )
    for data in (tokens, silent, tokens.select(np.arange(59, -1, -1))):
        assert prepare.cut(data, max_length).to_list() == prepare._run(data, max_length=max_length).to_list()
