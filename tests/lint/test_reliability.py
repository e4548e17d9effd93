"""The tables of docs/reliability.md."""

import json
from pathlib import Path

from make.reliability import COUNTS

ROOT = Path(__file__).parents[2]


def test_what_is_committed_was_a_whole_run_without_failures() -> None:
    record = json.loads((ROOT / "results" / "reliability" / "fuzz.json").read_text(encoding="utf-8"))
    total = {name: sum(tally[name] for tally in record["layers"].values()) for name in COUNTS}
    assert total["inputs"] >= 20_000
    assert (total["tracebacks"], total["silent"]) == (0, 0)
    assert total["inputs"] == total["refused"] + total["accepted"]
    assert record["kills"]["identical"] == record["kills"]["runs"] > 0
