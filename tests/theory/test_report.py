"""The tables and figures of `python -m theory`, on the committed record."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from theory.report import (
    theory_tables,
)

RECORD = Path(__file__).parents[2] / "results" / "theory" / "theory.json"


@pytest.fixture
def record() -> dict[str, Any]:
    return copy.deepcopy(json.loads(RECORD.read_text()))


def table(record: dict[str, Any], name: str) -> dict[str, list[str]]:
    """The cells of a table by its first column."""
    return {cells[0]: list(cells[1:]) for cells in theory_tables(record)[name].rows}


def test_cells_show_the_record(record: dict[str, Any]) -> None:
    record["gradients"]["rows"][0]["attacked"]["A"] = 0.5
    record["linear"]["rows"][0] |= {"mean_square": [1.5, 1.25], "supremum": [1.0, 2.0]}
    record["nonlinear"]["rows"][0]["channelwise"]["static"] = 0.125
    record["appendix_c"]["reach"][0]["distance"] = 0.25
    assert table(record, "theory-gradients")["A"][1] == "0.500"
    assert table(record, "theory-gradients")["H"][4:] == ["-", "-"]  # LoRA has none
    linear = theory_tables(record)["theory-linear"]
    assert list(linear.rows[0]) == ["truncated SVD", "", "0", "0", "", ""]
    assert list(linear.rows[1][2:4]) == ["0.25", "0"]
    assert table(record, "theory-nonlinear-channelwise")["tanh teacher"][-1] == "12.5"
    assert table(record, "theory-reach")["LoRA (sigma = identity)"] == ["0.2500"]
