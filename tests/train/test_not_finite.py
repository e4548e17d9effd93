"""NaN, infinity and a calibration of other weights, in a finished run: one line from every command, never a figure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from aurora_lora import cli

Invoke = Callable[..., Any]
OUT = "OUT"
COMMANDS = [
    ("evaluate", "RUN", "--json"),
    ("evaluate", "RUN", "--form", "dynamic"),
    ("gap", "RUN", "-o", OUT),
    ("sigma", "RUN", "-o", OUT),
    ("predict", "RUN", "good", "--json"),
    ("merge", "RUN", "-o", OUT),
    ("merge", "RUN", "--form", "static", "-o", OUT),
    ("export", "RUN", "-o", OUT),
]


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run with the first value of the first such weight changed, or all of every one's."""

    def change(weight: str, value: Callable[[torch.Tensor], Any], everywhere: bool = False) -> Path:
        shutil.copytree(finished, tmp_path / "run")
        path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
        weights = load_file(path)
        keys = [key for key in weights if key.endswith(weight)]
        assert keys
        for key in keys if everywhere else keys[:1]:
            place = slice(None) if everywhere else slice(1)
            weights[key].view(-1)[place] = value(weights[key].view(-1)[place])
        save_file(weights, path, metadata={"format": "pt"})
        result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
        del result["adapter_sha256"]  # as in a run of an earlier version: else the damage itself is what is noticed
        (tmp_path / "run" / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return tmp_path / "run"

    return change


def aurora(run: Path, *args: str) -> Any:
    named = {"RUN": str(run), OUT: str(run.parent / "out")}
    return CliRunner().invoke(cli.app, [named.get(arg, arg) for arg in args])


def refused(done: Any, words: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("aurora: ")]
    assert words in line


@pytest.mark.parametrize("weight", ["aurora_B.weight", "aurora_A_cal.weight", "classifier.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_command_takes_a_broken_adapter(damaged: Callable[..., Path], weight: str, value: float) -> None:
    run = damaged(weight, lambda _: value)
    for command in COMMANDS if weight == "aurora_B.weight" and value != value else COMMANDS[:1]:
        refused(aurora(run, *command), "holds values that are not finite (NaN or infinity)")
        out = run.parent / "out"
        assert not out.exists() or not list(out.iterdir())


def test_what_overflows_on_the_way(damaged: Callable[..., Path]) -> None:
    """Weights that are finite, and predictions that are not."""
    run = damaged("classifier.weight", lambda _: 3e38, everywhere=True)
    done = aurora(run, "evaluate", "RUN", "--form", "dynamic", "--json")
    scores = json.loads(done.stdout, parse_constant=pytest.fail)["by_form"]["dynamic"]
    assert scores["nll"] is None
    shown = aurora(run, "evaluate", "RUN", "--form", "dynamic").stdout
    assert "not finite" in shown
    assert "nan" not in shown.casefold()
    refused(aurora(run, "predict", "RUN", "good"), "has no answer: good holds values that are not finite")


def test_a_merged_model_with_nan_is_refused_by_predict(finished: Path, tmp_path: Path) -> None:
    assert aurora(finished, "merge", "RUN", "-o", str(tmp_path / "merged")).exit_code == 0
    path = tmp_path / "merged" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    refused(aurora(tmp_path / "merged", "predict", "RUN", "good"), "classifier.bias holds values that are not finite")
