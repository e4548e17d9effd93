"""Commands on an adapter of no run: a merge into a copy of a GGUF file, and a check of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from typer.testing import CliRunner

from aurora_lora.cli import app
from aurora_lora.deploy.stored import not_quantised
from deploy.gguf_llama import PROJECTIONS, adapted, write

WORDS = """this plot was dull, that actor moved me: 7 of 10! an odd end? yes; no - maybe 3/5""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.gguf, adapter/, texts.jsonl and merged.gguf."""
    folder = tmp_path_factory.mktemp("served")
    write(folder / "base.gguf", "Q4_1")
    adapted(folder / "base.gguf", LoraConfig(r=4, target_modules=PROJECTIONS)).save_pretrained(folder / "adapter")
    lines = [json.dumps({"text": " ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(9))}) for i in range(150)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    result = aurora(folder, "merge", "--output", str(folder / "merged.gguf"), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    ends = {end["form"]: end["kl"] for end in said["rounding"]["end_to_end"]}
    assert 0 < ends["by inputs"] < ends["nearest"] < ends["without adapter"]
    return folder


def aurora(folder: Path, command: str, *more: str, base: str = "base.gguf") -> Any:
    given = [str(folder / "adapter"), "--model", str(folder / base), "--data", str(folder / "texts.jsonl")]
    return CliRunner().invoke(app, [command, *given, *more])


def test_a_merge_is_checked(served: Path) -> None:
    result = aurora(served, "gap", "--merged", str(served / "merged.gguf"), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["wrong"]) == (0, [])
    assert 0 < found["merged"]["kl"] < 0.1 * found["without"]["kl"]
    assert found["merged"]["metric"]["perplexity"] > 0
    result = aurora(served, "gap", "--merged", str(served / "merged.gguf"), "--max-kl", str(found["merged"]["kl"] / 2))
    assert result.exit_code == 1
    assert "is above --max-kl" in result.output


def test_the_base_is_no_merge(served: Path) -> None:
    result = aurora(served, "gap", "--merged", str(served / "base.gguf"))
    assert result.exit_code == 1
    assert "is the base" in result.output


def test_weights_that_are_no_longer_quantised_are_told(served: Path, tmp_path: Path) -> None:
    write(file := tmp_path / "merged.gguf", "F16")
    result = aurora(served, "gap", "--merged", str(file))
    assert result.exit_code == 1
    assert "blk.0.attn_q.weight" in result.output.replace("\n", "")
    # without a base to compare with, by what a file is called
    file = file.rename(tmp_path / "merged-Q4_1.gguf")
    assert "blk.0.attn_q.weight" in not_quantised(file)
    assert not_quantised(file.rename(tmp_path / "Qwen2-F16.gguf")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--data": None}, "--data FILE"),
        ({"--model": None}, "--model BASE"),
        ({"--model": "minilm-l6"}, "neither a GGUF file nor a folder"),
        ({"--output": "merged.gguf"}, "exists already"),
        ({"--column": "tweet"}, "no column 'tweet'"),
        ({"--dtype": "bfloat16"}, "go with a run"),
    ],
)
def test_refused_in_one_line(
    served: Path, change: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(served)
    there = sorted(served.iterdir())
    given = {"--model": "base.gguf", "--data": "texts.jsonl", "--output": "new.gguf", **change}
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    result = CliRunner().invoke(app, ["merge", "adapter", *options])
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert sorted(served.iterdir()) == there
