"""Tables of docs/conformance.md on a known record."""

from typing import Any

from make.conformance import conformance_tables


def record_of(passed: int, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("skipped", "xfailed", "failed", "left_out"), 0)
    return {"passed": passed, **counts, "reasons": {}, "rows": {}, "failures": {}, **more}


RECORD = {
    "versions": {"peft": "0.21.2"},
    "seconds": 9,
    "files": {
        "test_a": record_of(
            1200, skipped=3, xfailed=1, reasons={"skipped": {"a | b": 1, "other": 2}, "xfailed": {"refused": 1}}
        ),
        "test_b": record_of(5, skipped=4, reasons={"skipped": {"a | b": 4}}, rows={"use_dora": 2}),
        "test_c": record_of(0, not_run="needs torchvision", rows={"use_dora": 1}),
    },
}


def test_counts_and_total() -> None:
    lines = conformance_tables(RECORD)["conformance files"].splitlines()
    assert lines[2] == "| `test_a` | 1,200 | 3 | 1 | 0 | 0 |"
    assert lines[4] == "| `test_c` | not run: needs torchvision |  |  |  |  |"
    assert lines[5] == "| **total** | **1,205** | **7** | **1** | **0** | **0** |"
    assert lines[-1] == "Run with peft 0.21.2."


def test_reasons_are_counted_over_the_files() -> None:
    tables = conformance_tables(RECORD)
    assert tables["conformance skips"].splitlines()[2:] == ["| 5 | a \\| b | a, b |", "| 2 | other | a |"]
    assert tables["conformance expected failures"].splitlines()[2:] == ["| 1 | refused | a |"]
    assert tables["conformance rows"] == "`use_dora` (3)."
