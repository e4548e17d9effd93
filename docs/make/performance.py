"""The parts of `docs/performance.md`, from what `benchmarks/speed.py` has written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_lora.files import read_json
from aurora_lora.text_table import TextTable
from benchmarks.speed_report import Record, interval_text, on_paper, shown_case, tables

WORKLOADS = ("linear", "linear-compiled", "minilm-l6", "smollm2-135m", "scaling")
MISSING = "Not measured yet: `make bench`, then `make docs`."
DYNAMIC = "aurora-dynamic"
CALLS = 34
"""The target of AuroRA's calls of a layer, forward and backward."""
STEPS = ("minilm-l6", "MiniLM-L6", 1.02), ("smollm2-135m", "SmolLM2-135M", 1.01)
"""Workload, name, and target of the ratio of AuroRA's training step to LoRA's."""


def parts(results: Path) -> dict[str, str]:
    """Markdown by the name of its place in the page; what is not measured yet says how to measure it.

    Args:
        results: where `make bench` has written.

    Raises:
        UserError: a file there is of something else.
    """
    found_in = {name: results / f"{name}.json" for name in WORKLOADS}
    records: dict[str, Record] = {name: read_json(path) for name, path in found_in.items() if path.exists()}
    found = {"bench-targets": targets(records).markdown(), "bench-paper": MISSING}
    for name in WORKLOADS:
        found[f"bench-{name}"] = MISSING
    for name, known in records.items():
        found[f"bench-{name}"] = _section(known)
        if name == "scaling":
            found["bench-paper"] = on_paper(known).markdown()
    return found


def _section(record: Record) -> str:
    paper = on_paper(record).title if record["workload"] == "scaling" else None
    shown = [f"**{rows.title}**\n\n{rows.markdown()}" for rows in tables(record) if rows.title != paper]
    return "\n\n".join([*shown, environment(record)])


def environment(record: Record) -> str:
    """One line on where the figures come from."""
    there = record["environment"]
    versions = ", ".join(f"{name} {there['versions'][name]}" for name in ("torch", "peft", "transformers"))
    load = f"; load average before: {there['load_before'][0]:.2f}" if there.get("load_before") else ""
    hexadecimal, changed, _ = (there.get("git_commit") or "").partition("-dirty")
    commit = f"; commit {hexadecimal[:9]}{', with changes' if changed else ''}" if hexadecimal else ""
    return f"{there['device']}; {record['settings']['threads']} thread(s); {versions}{load}{commit}."


# ---------------------------------------------------------------- the targets


def targets(records: Mapping[str, Record]) -> TextTable:
    """The targets of AuroRA's dynamic form at r = 2, PEFT's LoRA at r = 8, and what is measured."""
    rows: list[Sequence[str]] = [*_layer_targets(records), *_model_targets(records)]
    note = " ".join(_missed(records))
    return TextTable("", ["", "LoRA r=8", "target", "AuroRA r=2"], rows, note=note)


def _missed(records: Mapping[str, Record]) -> Iterator[str]:
    """A sentence for each target of the adapter or of a training step that is missed."""
    if DYNAMIC in (entries := _entries(records.get("linear"))):
        calls = entries[DYNAMIC]["training"]["calls"]["both"]
        if calls > CALLS:
            yield f"A layer makes {calls} calls forward and backward on a CPU; our target was {CALLS}."
    for name, label, target in STEPS:
        if DYNAMIC in (entries := _entries(records.get(name))):
            slower = 100 * (entries[DYNAMIC]["training"]["ratio"]["median"] - 1)
            if slower > 100 * (target - 1):
                ours = f"{100 * target - 100:.0f}%"
                yield f"The training step of {label} is {slower:.0f}% slower than LoRA's; our target was {ours}."


def _layer_targets(records: Mapping[str, Record]) -> Iterator[list[str]]:
    record = records.get("linear")
    entries = _entries(record)
    operator = {} if record is None else record["with_operator"]

    def calls(kind: str, name: str, of: str = "both") -> str:
        return f"{entries[name][kind]['calls'][of]}" if name in entries else "not measured"

    def with_operator(name: str) -> str:
        return f"{operator[name]['calls']['both']}" if operator else "not measured"

    def saved(name: str) -> str:
        return f"{entries[name]['training']['saved_bytes'] / 1e6:.2f} MB" if name in entries else "not measured"

    lora = calls("training", "lora-r8")
    yield ["calls of a layer, forward and backward, CPU", lora, f"<= {CALLS}", calls("training", DYNAMIC)]
    yield ["the same, sigma as a fused kernel (CUDA)", lora, "<= 14", with_operator(DYNAMIC)]
    yield ["the same, static form", lora, "<= 14 and sigma(A) once", with_operator("aurora-static")]
    calibrated = calls("inference", "aurora-calibrated", "forward")
    yield ["calls of a layer in inference, calibrated", calls("inference", "lora-r8", "forward"), "<= 5", calibrated]
    yield ["bytes saved for the backward pass", saved("lora-r8"), "<= 15.4 MB", saved(DYNAMIC)]


def _model_targets(records: Mapping[str, Record]) -> Iterator[list[str]]:
    for name, label, target in STEPS:
        entries = _entries(records.get(name))
        step = interval_text(entries[DYNAMIC]["training"]["ratio"]) if DYNAMIC in entries else "not measured"
        yield [f"training step, {label}", "1.000", f"<= {target:.2f}", step]
    for name, label, _ in STEPS:
        merged = _entries(records.get(name)).get("aurora-merged")
        if merged is None:
            found = "not measured"
        else:
            same = "same calls" if merged["inference"]["same_calls_as_base"] else "other calls"
            found = f"{interval_text(merged['inference']['ratio'])}, {same}"
        yield [f"merged model, inference / base, {label}", "", "1.00, same calls", found]


def _entries(record: Record | None) -> dict[str, Any]:
    if record is None:
        return {}
    return {entry["variant"]: entry for entry in shown_case(record)["variants"]}
