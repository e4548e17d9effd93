"""Tables of a record of `benchmarks.speed`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aurora_lora.errors import counted
from aurora_lora.text_table import TextTable

Record = Mapping[str, Any]
LAYER = (4096, 768)
"""Tokens and width of the layer that stands for all: what is shown in full, beside the grid."""


def tables(record: Record) -> list[TextTable]:
    """All tables of one record."""
    if record["workload"] == "scaling":
        return [*axis_tables(record), exponents(record), on_paper(record)]
    case = shown_case(record)
    found = [times(record, case), counts(record, case)]
    return [*found, grid(record)] if len(record["cases"]) > 1 else found


def shown_case(record: Record) -> Mapping[str, Any]:
    """The case that is shown in full: the only one, or the layer that stands for all."""
    cases: Sequence[Mapping[str, Any]] = record["cases"]
    wanted = (case for case in cases if (case["sizes"]["tokens"], case["sizes"].get("d")) == LAYER)
    return next(wanted, cases[-1])


def title(record: Record, case: Mapping[str, Any]) -> str:
    sizes, settings = case["sizes"], record["settings"]
    if "d" in sizes:
        words = f"one linear layer {sizes['d']:,} -> {sizes['d']:,}, {sizes['tokens']:,} tokens"
    else:
        words = f"{record['workload']}, {sizes['batch']} x {sizes['length']} tokens, {sizes['adapted_layers']} layers"
    threads = f", {counted(settings['threads'], 'thread')}"
    mode = ", compiled" if record["compiled"] else ""
    return f"{words}, {settings['dtype']}, {settings['device']}{threads if settings['device'] == 'cpu' else ''}{mode}"


# ---------------------------------------------------------------- the comparison of variants


def times(record: Record, case: Mapping[str, Any]) -> TextTable:
    """Time of a training step and of inference, as ratios."""
    compiled = record["compiled"]
    clock = "CPU time" if record["settings"]["device"] == "cpu" else "GPU time"
    note = f"{clock}; median of {record['settings']['rounds']} interleaved pairs (95% bootstrap interval)"
    headers = ["", "training step / LoRA r=8", "inference / base model"]
    if compiled:
        headers = ["", "training step", "/ eager", "inference", "/ eager"]
        note += "; in LoRA r=8's step and the base model's inference, of the same mode, and eager"
    found = TextTable(f"Time: {title(record, case)}", headers, note=note)
    for entry in case["variants"]:
        cells = [_label(entry, compiled)]
        for kind in ("training", "inference"):
            values = entry.get(kind)
            if values is None:
                cells.append("as dynamic" if kind == "training" and entry["variant"] == "aurora-calibrated" else "-")
            else:
                cells.append(interval_text(values["ratio"], 2 if compiled else 3))
            if compiled:
                to_eager = None if values is None else values.get("ratio_to_eager", values["ratio"])
                cells.append("-" if to_eager is None else f"{to_eager['median']:.2f}")
        found.rows.append(cells)
    return found


def counts(record: Record, case: Mapping[str, Any]) -> TextTable:
    """Parameters, calls, bytes kept for the backward pass, and peak memory."""
    launches = any("launches" in entry.get("training", ()) for entry in case["variants"])
    of_model = "d" not in case["sizes"]
    headers = ["", "trained", "forward", "both", "eval", "saved MB", "peak MB"]
    # the weights that a model's backward pass needs are there anyway; of one layer they are part of what is compared
    saved = "saved_bytes_but_weights" if of_model else "saved_bytes"
    note = (
        f"calls {'that an adapter adds, by adapted layer' if of_model else 'of the layer'}: forward, forward and "
        f"backward, and in inference; saved: for the backward pass{', without weights' if of_model else ''}; "
        "peak: of a whole step, beyond the model"
    )
    found = TextTable(f"Counts: {title(record, case)}", [*headers, *(["launches"] if launches else [])], note=note)
    for entry in case["variants"]:
        training, inference = entry.get("training"), entry.get("inference")
        cells = [_label(entry, record["compiled"])]
        if training:
            calls = training["per_layer"]
            cells += [f"{training['parameters']:,}", _count(calls["forward"]), _count(calls["both"])]
        else:
            cells += ["-", "-", "-"]
        cells.append(_count(inference["per_layer"]["forward"]) if inference else "-")
        cells += [_mb(training[name]) for name in (saved, "peak_bytes")] if training else ["-", "-"]
        if launches:
            cells.append(f"{training['launches']:,}" if training else "-")
        found.rows.append(cells)
    return found


def grid(record: Record) -> TextTable:
    """Training step over tokens and widths."""
    label = {entry["variant"]: entry["label"] for entry in record["cases"][0]["variants"]}
    names = [name for name in ("aurora-dynamic", "aurora-r8", "aurora-static") if name in label]
    headers = ["tokens x width", "base", *(label[name].replace("dynamic ", "") for name in names)]
    found = TextTable("Training step / LoRA r=8, over the grid", headers)
    for case in record["cases"]:
        ratios = {
            entry["variant"]: entry["training"]["ratio"]
            for entry in case["variants"]
            if "training" in entry and entry["compiled"] == record["compiled"]
        }
        sizes = case["sizes"]
        cells = [f"{sizes['tokens']:,} x {sizes['d']:,}", f"{ratios['frozen']['median']:.2f}"]
        found.rows.append([*cells, *(interval_text(ratios[name], 2) for name in names)])
    return found


# ---------------------------------------------------------------- scaling


def axis_tables(record: Record) -> Iterator[TextTable]:
    """Milliseconds at each value of an axis, and what the adapters add to the base."""
    for axis in record["axes"]:
        labels = axis["labels"]
        series = list(axis["points"][0]["added"])
        headers = [axis["name"], labels["frozen"], *(labels[name] for name in series)]
        headers += [f"{labels[name]} - base" for name in series]
        found = TextTable(f"Milliseconds against {axis['name']}: {axis['fixed']}", headers)
        for point in axis["points"]:
            cells = [f"{point['value']:,}", *(_ms(point["seconds"][name]) for name in ("frozen", *series))]
            cells += [_ms(point["added"][name]["median"]) for name in series]
            found.rows.append(cells)
        yield found


def exponents(record: Record) -> TextTable:
    """b of cost = a n^b for each axis."""
    headers = ["b of n^b, n =", "base", "LoRA", "AuroRA", "LoRA - base", "AuroRA - base"]
    note = "least squares of the logarithms, with standard errors; what an adapter adds has none where noise hides it"
    found = TextTable("Exponents", headers, note=note)
    for axis in record["axes"]:
        fits = axis["fits"]
        cells = [fits["seconds"]["frozen"], fits["seconds"]["lora"], fits["seconds"]["aurora"]]
        cells += [fits["added"]["lora"], fits["added"]["aurora"]]
        found.rows.append([axis["name"], *map(_exponent, cells)])
    return found


def on_paper(record: Record) -> TextTable:
    """What adapters cost on larger models, by counting."""
    headers = ["", "trained", "share", "state MB", "flops", "saved MB", "with x", "calls"]
    note = (
        "q, k, v, up and down adapted, bfloat16, sigma as a fused kernel. State: weights, gradients, AdamW's moments, "
        "float32. Flops: of a training step, in the base's. Saved: for the backward pass of 1,000 tokens, without and "
        "with x. Calls: of a step."
    )
    found = TextTable("On paper: LLaMA3 of 8B and 70B", headers, note=note)
    for entry in record["paper"]:
        cells = [f"{entry['model']['name'].split('-')[-1]} {entry['method']}", f"{entry['parameters'] / 1e6:.3g}M"]
        cells += [f"{100 * entry['share']:.3f}%", f"{entry['state_bytes'] / 1e6:,.0f}"]
        cells += [f"{100 * entry['flops_of_base']:.3f}%", f"{entry['saved_bytes_1k'] / 1e6:.1f}"]
        cells += [f"{entry['saved_bytes_1k_with_x'] / 1e6:,.0f}", f"{entry['calls']:,}"]
        found.rows.append(cells)
    return found


# ---------------------------------------------------------------- cells


def interval_text(ratio: Mapping[str, float], digits: int = 3) -> str:
    """`1.013 (1.008-1.019)`; the reference itself is plain 1."""
    if ratio["low"] == ratio["high"] == 1:
        return "1"
    return f"{ratio['median']:.{digits}f} ({ratio['low']:.{digits}f}-{ratio['high']:.{digits}f})"


def _label(entry: Mapping[str, Any], beside_compiled: bool) -> str:
    label: str = entry["label"]
    return f"{label}, eager" if beside_compiled and not entry["compiled"] else label


def _count(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.{1 if size >= 1e8 else 2}f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _exponent(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['exponent']:.2f}±{found['standard_error']:.2f}"
