"""The runs of a study in one file: what is written comes back, and what is no such file is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.runs_file import read_runs, write_runs


def result(number: int, **more: Any) -> dict[str, Any]:
    task, training = {"name": "movie-sentiment"}, {"epochs": 2, "learning_rate": 0.1 * (1 + number)}
    recipe = {"name": "n", "model": "m", "seed": number, "training": training, "task": task, "method": {"name": "lora"}}
    selected_by = {"split": "validation", "form": "merged", "name": "accuracy", "value": 0.5, "epoch": 1.0}
    by_form = {"merged": {"accuracy": number / 3}}
    return {
        "schema": 1,
        "recipe": recipe,
        "method": "lora",
        "model": "m",
        "task": "t",
        "seed": number,
        "metric": {"name": "accuracy", "split": "test", "by_form": by_form, "selected_by": selected_by},
        "params": {"adapter": 1, "head": 0, "total": 2},
        "time": {"train_s": 1.0, "samples_per_s": 1.0},
        "memory": {"peak_mb": 1.0},
        "epochs": [{"epoch": 1.0, "validation": {"nll": 0.5}}],
        "status": "finished",
        **more,
    }


def test_results_come_back(tmp_path: Path) -> None:
    """But for what the machine was, and all but five digits of learning curves; what all have is there once."""
    more = {
        "epochs": [{"epoch": 1.0, "validation": {"nll": 0.123456789}}],
        "versions": {"a": "1"},
        "adapter_sha256": {"f": "0"},
    }
    runs = {tmp_path / "runs" / "s" / f"seed{number}": result(number, **more) for number in (2, 0, 1)}
    write_runs(tmp_path, runs)
    found = read_runs(tmp_path)
    assert [folder.name for folder in found] == ["seed0", "seed1", "seed2"]
    for folder, back in found.items():
        assert back == {
            **result(runs[folder]["recipe"]["seed"]),
            "epochs": [{"epoch": 1.0, "validation": {"nll": 0.12346}}],
        }
    first, *lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert first["common"]["recipe"]["training"] == {"epochs": 2}
    assert lines[1]["run"] == "s/seed1"
    assert lines[1]["recipe"] == {"seed": 1, "training": {"learning_rate": 0.2}}


@pytest.mark.parametrize(
    "runs",
    [
        [result(0, labels=[])],
        [result(0, data={"a": 1}), result(0, data={"a": 1.0})],  # equal in Python, not in JSON
        [result(0, data={"a": {"b": 1}}), result(0, data={"a": 3}), result(0)],
        [result(0, data={"a": {"b": None, "c": 2}}), result(0, data={"a": {"b": None}})],
    ],
)
def test_whatever_they_have_in_common(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    write_runs(tmp_path, {tmp_path / "runs" / str(number): one for number, one in enumerate(runs)})
    assert [json.dumps(one, sort_keys=True) for one in read_runs(tmp_path).values()] == [
        json.dumps(one, sort_keys=True) for one in runs
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0][:-20], *lines[1:]], "line 1 is not a run of aurora sweep"),
        (lambda lines: [lines[0].replace('"schema": 1', '"schema": 2'), lines[1]], "line 2 has schema 2, this version"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    write_runs(tmp_path, {tmp_path / "runs" / "s" / f"seed{number}": result(number) for number in range(2)})
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(UserError, match=message):
        read_runs(tmp_path)
