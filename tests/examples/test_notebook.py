"""The notebooks, cell by cell: on a tiny model, and on a few sentences of their own."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import tiny

from aurora_lora.data.models import resolve_model
from aurora_lora.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "examples"


def code(notebook: str) -> list[dict[str, Any]]:
    cells = json.loads((EXAMPLES / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(notebook: str, **parameters: Any) -> None:
    """Run every cell in one namespace; `parameters` replace what the cell with that tag sets, as papermill does."""
    names: dict[str, Any] = {}
    for cell in code(notebook):
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= names.keys()
            names |= parameters


@pytest.mark.parametrize("model", ["tiny", pytest.param("minilm-l6", marks=[pytest.mark.packaged, pytest.mark.slow])])
def test_every_cell_runs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    parameters: dict[str, Any] = {"TRAIN": 32, "TEST": 32, "EPOCHS": 1, "OUTPUT": tmp_path}
    if model == "tiny":
        tiny.register()
        parameters |= {"MODEL": str(tiny.save_model(tmp_path / "model")), "TASK": "tiny-sentiment"}
    else:
        try:
            resolve_model(model)
        except UserError as error:
            pytest.skip(str(error))
    execute("aurora", **parameters)
    said = capsys.readouterr().out
    for form in ("dynamic", "static", "calibrated"):
        assert re.search(rf"^{form} +accuracy [01]\.\d+", said, re.MULTILINE)
    assert re.search(r"^LoRA: +LoraConfig True$", said, re.MULTILINE)
    assert re.search(r"^merged: +BertForSequenceClassification True$", said, re.MULTILINE)


def test_own_data_become_a_merged_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.register()
    model = str(tiny.save_model(tmp_path / "base"))
    execute("own_data", MODEL=model, TASK="tiny-sentiment", ROWS=40, EPOCHS=1, OUTPUT=tmp_path)
    said = capsys.readouterr().out
    assert "calibrated merge, deployed" in said
    assert len(re.findall(r"^(?:good|bad) +[01]\.\d\d  ", said, re.MULTILINE)) == 2
    assert "adapter_model.safetensors" in said


@pytest.mark.slow
def test_a_lora_survives_the_merge_into_4_bits(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.register()
    common.tiny_model().save_pretrained(tmp_path / "base")
    common.tiny_tokenizer().save_pretrained(tmp_path / "base")
    execute("merge_4bit", MODEL=str(tmp_path / "base"), TASK="tiny-rating", STEPS=16, OUTPUT=tmp_path)
    lost = re.findall(r"^(?:without|merged).* (\d+\.\d+)$", capsys.readouterr().out, re.MULTILINE)
    without, nearest, rounded = map(float, lost)
    assert rounded < nearest < without


@pytest.mark.parametrize("notebook", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_it_was_run_from_the_first_cell_to_the_last(notebook: str) -> None:
    """What it shows is what its cells printed."""
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells)
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
