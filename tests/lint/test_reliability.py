"""The tables of docs/reliability.md."""

import json
from pathlib import Path

from make.reliability import COUNTS, reliability_tables

ROOT = Path(__file__).parents[2]


def test_every_kind_is_a_row_and_the_total_is_their_sum() -> None:
    tally = {"what": "texts", "promise": "is right", "refused": 3, "accepted": 4, "tracebacks": 1, "silent": 2}
    layers = {"a": {**tally, "inputs": 10}, "b": {**tally, "inputs": 1990}}
    versions = dict.fromkeys(("python", "torch", "peft", "transformers"), "1")
    kills = {"kills": 7, "runs": 3, "identical": 3}
    tables = reliability_tables({"layers": layers, "versions": versions, "kills": kills, "seconds": 600})
    lines = tables["reliability"].splitlines()
    assert lines[2] == "| a | texts | 10 | 3 | 4 | 1 | 2 |"
    assert lines[4] == "| **total** |  | **2,000** | **6** | **8** | **2** | **4** |"
    assert "7 kills in 3 runs, of which 3" in tables["reliability"]
    assert tables["reliability promises"].splitlines() == ["- a: is right.", "- b: is right."]


def test_what_is_committed_was_a_whole_run_without_failures() -> None:
    record = json.loads((ROOT / "results" / "reliability" / "fuzz.json").read_text(encoding="utf-8"))
    total = {name: sum(tally[name] for tally in record["layers"].values()) for name in COUNTS}
    assert total["inputs"] >= 20_000
    assert (total["tracebacks"], total["silent"]) == (0, 0)
    assert total["inputs"] == total["refused"] + total["accepted"]
    assert record["kills"]["identical"] == record["kills"]["runs"] > 0
    assert reliability_tables(record)["reliability"] in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
