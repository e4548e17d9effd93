"""Tables of docs/reliability.md, from results/reliability/fuzz.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_lora.text_table import TextTable

COUNTS = {
    "inputs": "inputs",
    "refused": "rejected with a message",
    "accepted": "accepted, correct",
    "tracebacks": "tracebacks",
    "silent": "accepted, wrong",
}


def reliability_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page by name: what came of each kind of input, and of the kills."""
    layers: Mapping[str, Mapping[str, Any]] = record["layers"]
    table = TextTable("", ["kind", "inputs drawn", *COUNTS.values()], align="llr")
    for name, tally in layers.items():
        table.rows.append([name, tally["what"], *(f"{tally[key]:,}" for key in COUNTS)])
    total = [f"**{sum(tally[key] for tally in layers.values()):,}**" for key in COUNTS]
    table.rows.append(["**total**", "", *total])
    killed, minutes = record["kills"], record["seconds"] / 60
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("python", "torch", "peft", "transformers"))
    lines = [
        table.markdown("---:"),
        "",
        f"Runs killed by -9: {killed['kills']} kills in {killed['runs']} runs, of which {killed['identical']} ended "
        "with the same weights and scores, to the last bit, as the run that nothing happened to.",
        "",
        f"Drawn in {minutes:.0f} minutes with {versions}.",
    ]
    promises = "\n".join(f"- {name}: {tally['promise']}." for name, tally in layers.items())
    return {"reliability": "\n".join(lines), "reliability promises": promises}
