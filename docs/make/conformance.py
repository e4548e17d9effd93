"""Tables of docs/conformance.md, from results/conformance.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from aurora_lora.text_table import TextTable

COLUMNS = {
    "passed": "passed",
    "skipped": "skipped",
    "xfailed": "expected failures",
    "failed": "failed",
    "left_out": "left out",
}


def conformance_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page by name: the counts of each file, and the reasons of each kind with their counts."""
    files: Mapping[str, Mapping[str, Any]] = record["files"]
    return {
        "conformance files": _counts(record, files),
        "conformance expected failures": _reasons(files, "xfailed"),
        "conformance skips": _reasons(files, "skipped"),
        "conformance left out": _reasons(files, "left_out"),
        "conformance rows": _rows(files),
    }


def _counts(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    table = TextTable("", ["file", *COLUMNS.values()], align="l")
    for name, each in files.items():
        cells = [f"not run: {each['not_run']}", *[""] * (len(COLUMNS) - 1)] if "not_run" in each else _cells(each)
        table.rows.append([f"`{name}`", *cells])
    total = {key: sum(each[key] for each in files.values()) for key in COLUMNS}
    table.rows.append([f"**{cell}**" for cell in ("total", *_cells(total))])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table.note = f"Run with {versions}."
    return table.markdown()


def _cells(counts: Mapping[str, int]) -> list[str]:
    return [f"{counts[key]:,}" for key in COLUMNS]


def _reasons(files: Mapping[str, Mapping[str, Any]], outcome: str) -> str:
    """The reasons of all files, the most frequent first, with the files that have them."""
    counted = Counter[str]()
    where: dict[str, list[str]] = {}
    for name, each in files.items():
        for reason, n in each["reasons"].get(outcome, {}).items():
            counted[reason] += n
            where.setdefault(reason, []).append(name.removeprefix("test_"))
    rows = [[f"{n:,}", reason.replace("<", "&lt;"), ", ".join(where[reason])] for reason, n in counted.most_common()]
    return TextTable("", ["tests", "reason", "files"], list(rows), align="l").markdown()


def _rows(files: Mapping[str, Mapping[str, Any]]) -> str:
    counted = sum((Counter(each["rows"]) for each in files.values()), Counter[str]())
    return ", ".join(f"`{option}` ({n})" for option, n in counted.most_common()) + "."
