"""Own data from a data set of the hub: its configurations, splits and revisions, and its commit in the run's record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server

SCRIPT = """
import json, sys
import datasets
from aurora_lora.errors import UserError
from aurora_lora.data.own.source import OwnData, open_data

datasets.disable_progress_bars()
for line in sys.stdin:
    try:
        pieces = open_data(OwnData(**json.loads(line)))
        rows = {name: [piece.data[0]["text"], len(piece.data)] for name, piece in pieces.items()}
        print(json.dumps([rows, pieces.files["some/reviews"]]))
    except UserError as error:
        print(json.dumps(str(error)))
"""
CARD = """---
configs:
- config_name: short
  data_files: [{split: train, path: short/train.jsonl}, {split: test, path: short/test.jsonl}]
- config_name: long
  data_files: [{split: everything, path: long.jsonl}]
---
"""


def _write(folder: Path, version: str) -> None:
    for file, count in (("short/train", 9), ("short/test", 3), ("long", 20)):
        path = folder / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": f"{version} {file} {n}"}) + "\n" for n in range(count)))
    (folder / "README.md").write_text(CARD)


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    _write(root / "datasets" / "some" / "reviews", "first")
    _write(root / "datasets" / "some" / "reviews@v2", "second")
    asked = [
        {"config": "short"},
        {"config": "long"},
        {"config": "short", "revision": "v2"},
        {"config": "short", "test_split": "exam"},
        {"config": "middle"},
        {},
        {"data": "some/other"},
        {"config": "short", "revision": "v9"},
        {"config": "short"},
    ]
    with hub_server.serving(root) as hub:
        changes = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "x"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input="".join(json.dumps({"data": "some/reviews", **one}) + "\n" for one in asked),
            env={key: value for key, value in os.environ.items() if key != "AURORA_LORA_DATA"} | changes,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    short, long, second, no_split, no_config, which, no_data, no_revision, again = map(
        json.loads, done.stdout.splitlines()
    )
    assert short[0] == {"train": ["first short/train 0", 9], "test": ["first short/test 0", 3]}
    assert long[0] == {"train": ["first long 0", 20]}
    assert second[0]["train"] == ["second short/train 0", 9]
    assert short[1] == long[1] == again[1]
    assert len({short[1], second[1]}) == 2
    assert no_split == "task.test_split: some/reviews has no split 'exam' (it has train, test)"
    assert no_config.startswith(
        "the data of some/reviews (middle) cannot be loaded from the Hugging Face hub: BuilderConfig"
    )
    assert "Hugging Face hub: Dataset 'some/other' doesn't exist on the Hub" in no_data
    assert "Revision 'v9' doesn't exist" in no_revision
    assert "it has several configurations, of which task.config names one: 'short', 'long'" in which
