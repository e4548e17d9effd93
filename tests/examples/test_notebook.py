"""The notebook, cell by cell: on a tiny model, and on a few sentences of its own."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import tiny

from aurora_lora.data.models import resolve_model
from aurora_lora.errors import UserError

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples" / "aurora.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def execute(**parameters: Any) -> None:
    """Run every cell in one namespace; `parameters` replace what the cell with that tag sets, as papermill does."""
    names: dict[str, Any] = {}
    for cell in CODE:
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
    execute(**parameters)
    said = capsys.readouterr().out
    for form in ("dynamic", "static", "calibrated"):
        assert re.search(rf"^{form} +accuracy [01]\.\d+", said, re.MULTILINE)
    assert re.search(r"^LoRA: +LoraConfig True$", said, re.MULTILINE)
    assert re.search(r"^merged: +BertForSequenceClassification True$", said, re.MULTILINE)


def test_it_was_run_from_the_first_cell_to_the_last() -> None:
    """What it shows is what its cells printed."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert any(output["output_type"] == "display_data" for cell in CODE for output in cell["outputs"])
    assert not any(output["output_type"] == "error" for cell in CODE for output in cell["outputs"])
