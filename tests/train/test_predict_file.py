"""The columns of a row in the line with its answer: as they stand in the file."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from aurora_lora.files import PARTIAL
from aurora_lora.train.kinds.text import MULTI_LABEL
from aurora_lora.train.predict_file import _gathered, predict_file


def lines(folder: Path, file: str) -> list[dict[str, Any]]:
    """What is written of a file, of which nothing is known beside its columns."""
    predictor: Any = SimpleNamespace(
        kind=MULTI_LABEL,
        columns={},
        data=None,
        processor=None,
        folder=folder / "run",
        form_name=None,
        dtype=None,
        answers_to=lambda texts, batch_size: [{"text": text} for text in texts],
    )
    predict_file(predictor, str(folder / file), folder / "answers.jsonl")
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_classes_in_a_list_are_written_by_their_names(tmp_path: Path) -> None:
    kind = ClassLabel(names=["good", "bad"])
    features = Features({"text": Value("string"), "labels": List(kind), "meta": {"label": kind}, "scores": List(kind)})
    rows = [
        {"text": "a", "labels": [1, 0], "meta": {"label": 1}, "scores": []},
        {"text": "b", "labels": [], "meta": {"label": -1}, "scores": None},
    ]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    assert lines(tmp_path, "rows.parquet") == [
        {"text": "a", "labels": ["bad", "good"], "meta": {"label": "bad"}, "scores": []},
        {"text": "b", "labels": [], "meta": {"label": None}, "scores": None},
    ]


def test_what_was_cut_off_within_a_character_is_answered_again(tmp_path: Path) -> None:
    """By a full disk, say."""
    output = tmp_path / "answers.jsonl"
    with contextlib.suppress(KeyboardInterrupt), _gathered(output, "x", 1) as (out, _):
        out.write('{"text": "\u0434\u0430"}\n')
        raise KeyboardInterrupt
    partial = tmp_path / f".answers.jsonl{PARTIAL}"
    partial.write_bytes(partial.read_bytes() + '{"text": "\u0434'.encode()[:-1])
    with _gathered(output, "x", 1) as (out, earlier):
        assert earlier == [{"text": "\u0434\u0430"}]
        out.write('{"text": "\u043d"}\n')
    assert [json.loads(line) for line in output.read_text("utf-8").splitlines()] == [
        {"text": "\u0434\u0430"},
        {"text": "\u043d"},
    ]
