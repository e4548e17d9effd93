"""The columns of a row in the line with its answer: as they stand in the file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from aurora_lora.errors import ArgumentError
from aurora_lora.train.kinds import KINDS
from aurora_lora.train.predicting import predict_file


def lines(folder: Path, file: str) -> list[dict[str, Any]]:
    """What is written of a file, of which nothing is known beside its columns."""
    return [json.loads(line) for line in written(folder, file, "answers.jsonl").splitlines()]


def written(folder: Path, file: str, output: str, **answer: Any) -> str:
    predictor: Any = SimpleNamespace(
        kind=KINDS["multi-label"],
        columns={},
        data=None,
        processor=None,
        folder=folder / "run",
        answers_to=lambda texts, batch_size: [{"text": text, **answer} for text in texts],
    )
    predict_file(predictor, str(folder / file), folder / output)
    return (folder / output).read_text(encoding="utf-8")


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


def test_the_answers_to_csv_are_csv(tmp_path: Path) -> None:
    """With the separator of the file."""
    (tmp_path / "rows.csv").write_text('text;labels\n"a; ""b""\nc";007\nä;\n', encoding="utf-8")
    assert written(tmp_path, "rows.csv", "out.csv", labels=["x", "y"], cut_at=3) == (
        'text;labels;predicted_labels;cut_at\n"a; ""b""\nc";007;"[""x"", ""y""]";3\nä;;"[""x"", ""y""]";3\n'
    )
    with pytest.raises(ArgumentError, match=r"out\.tsv: answers are JSON lines, or CSV where FILE is"):
        written(tmp_path, "rows.csv", "out.tsv")
