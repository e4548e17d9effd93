"""Tables and figures of a record of `benchmarks.speed`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from aurora_lora.errors import counted
from aurora_lora.lab.report.figures import COLOURS, GRID, legend, new_figure, save
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


# ---------------------------------------------------------------- figures

FROZEN: dict[str, Any] = {"color": COLOURS["frozen"], "marker": "x", "linestyle": ":"}
LORA: dict[str, Any] = {"color": COLOURS["lora"], "marker": "s", "linestyle": "--"}
DORA: dict[str, Any] = {"color": COLOURS["dora"], "marker": "D", "linestyle": (0, (3, 1, 1, 1))}
AURORA: dict[str, Any] = {"color": COLOURS["aurora"], "marker": "o", "linestyle": "-"}
GRID_STYLES: dict[str, dict[str, Any]] = {
    "frozen": FROZEN,
    "aurora-dynamic": AURORA,
    "aurora-r8": {**AURORA, "marker": "^", "linestyle": "-.", "markerfacecolor": "white"},
    "dora-r8": DORA,
}
BY_METHOD = {"aurora": AURORA, "lora": LORA, "dora": DORA, "frozen": FROZEN}


def write_figures(record: Record, path: Path) -> list[Path]:
    """The figures of a record as PNG and SVG; `path` without an ending, to which `-grid` is added for the second."""
    if record["workload"] == "scaling":
        return save(scaling_figure(record), path)
    written = save(times_figure(record), path)
    if len(record["cases"]) > 1:
        written += save(grid_figure(record), path.with_name(f"{path.name}-grid"))
    return written


def times_figure(record: Record) -> Figure:
    """Time of a training step and of inference of each variant, with intervals."""
    case = shown_case(record)
    kinds = (("training", "training step / LoRA r=8"), ("inference", "inference / base model"))
    entries = {kind: [entry for entry in case["variants"] if kind in entry] for kind, _ in kinds}
    figure, axes = new_figure(2, 7.2, 0.9 + 0.21 * max(map(len, entries.values())))
    for ax, (kind, label) in zip(axes, kinds, strict=True):
        names = []
        for place, entry in enumerate(entries[kind]):
            compiled = record["compiled"] and entry["compiled"]
            ratio = entry[kind]["ratio_to_eager" if compiled else "ratio"]
            errors = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
            style = BY_METHOD[entry["variant"].partition("-")[0]]
            ax.errorbar(
                [ratio["median"]],
                [place],
                xerr=errors,
                color=style["color"],
                marker=style["marker"],
                markerfacecolor="white" if compiled else style["color"],
                markersize=4.5,
                capsize=2.5,
                linestyle="none",
            )
            # beside the panel, since one far point sets the scale for all
            ax.text(1.01, place, f"{ratio['median']:.3f}", transform=ax.get_yaxis_transform(), fontsize=7, va="center")
            names.append(entry["label"] + (" (compiled)" if compiled else ""))
        ax.axvline(1, color="#000000", linewidth=0.8)
        ax.set_yticks(range(len(names)), names, fontsize=7.5)
        ax.invert_yaxis()
        ax.grid(axis="x", **GRID)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(label + (" (eager)" if record["compiled"] else ""), fontsize=8.5)
        ax.tick_params(axis="x", labelsize=8)
    figure.suptitle(title(record, case), fontsize=9, x=0.01, ha="left")
    return figure


def grid_figure(record: Record) -> Figure:
    """A training step against the number of tokens, a panel for each width."""
    widths = sorted({case["sizes"]["d"] for case in record["cases"]})
    figure, axes = new_figure(len(widths), 7.2, 2.7)
    for ax, width in zip(axes, widths, strict=True):
        cases = [case for case in record["cases"] if case["sizes"]["d"] == width]
        tokens = [case["sizes"]["tokens"] for case in cases]
        for name, style in GRID_STYLES.items():
            entries = [entry for case in cases for entry in case["variants"] if entry["variant"] == name]
            if entries:
                _line(ax, tokens, [entry["training"]["ratio"] for entry in entries], entries[0]["label"], style)
        ax.axhline(1, color="#000000", linewidth=0.8)
        ax.set_xscale("log", base=2)
        ax.set_xticks(tokens, [f"{value:,}" for value in tokens])
        ax.set_xlabel("tokens")
        ax.set_title(f"d = {width:,}", fontsize=9, loc="left")
    axes[0].set_ylabel("training step / LoRA r=8")
    legend(figure, axes[0])
    return figure


def _line(
    ax: Axes, x: Sequence[float], ratios: Sequence[Mapping[str, float]], label: str, style: Mapping[str, Any]
) -> None:
    medians = [ratio["median"] for ratio in ratios]
    errors = [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
    ax.errorbar(x, medians, yerr=errors, label=label, capsize=2.5, markersize=4.5, **style)


def scaling_figure(record: Record) -> Figure:
    """Milliseconds against each quantity, both axes logarithmic, with the fitted exponents of the base and the two:
    the slope of the line through the points."""
    figure, axes = new_figure(3, 8.4, 5.0, rows=2)
    styles = {"frozen": FROZEN, "lora": LORA, "aurora": AURORA}
    short = {"frozen": "base", "lora": "LoRA", "aurora": "AuroRA"}
    for ax, axis in zip(axes, record["axes"], strict=False):
        values = [point["value"] for point in axis["points"]]
        for name, style in styles.items():
            heights = [1000 * point["seconds"][name] for point in axis["points"]]
            ax.plot(values, heights, label=axis["labels"][name], markersize=4, linewidth=1.2, **style)
        _log_ticks(ax, values)
        ax.set_xlabel(axis["name"])
        fits = {name: axis["fits"]["seconds"][key] for key, name in short.items()}
        slopes = ", ".join(
            f"{name} {'-' if fit is None else format(fit['exponent'], '.2f')}" for name, fit in fits.items()
        )
        ax.set_title(f"{axis['fixed']}\nslope: {slopes}", fontsize=7, loc="left")
    for ax in axes[len(record["axes"]) :]:
        ax.set_axis_off()
        look: dict[str, Any] = {"loc": "center left", "frameon": False, "fontsize": 8.5, "title_fontsize": 8}
        ax.legend(handles=axes[0].get_lines(), title="ranks, where they do not vary", alignment="left", **look)
    for ax in axes[::3]:
        ax.set_ylabel("milliseconds")
    return figure


def _log_ticks(ax: Axes, values: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    shown = [value for value in values if value & (value - 1) == 0 or value == values[-1]]
    ax.set_xticks(shown, [f"{value:,}" for value in shown], rotation=45, fontsize=7.5)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    few = high < 12 * low  # 1, 2 and 5 would be at most three
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if few else LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.tick_params(axis="y", labelsize=8)
