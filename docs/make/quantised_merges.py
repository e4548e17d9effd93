"""The figure, the tables and the costs of docs/quantised.md."""

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from aurora_lora.lab.report.figures import GREY, GRID, colour, legend, new_figure
from aurora_lora.text_table import TextTable

Record = Mapping[str, Any]

SHOWN = {"lora": "LoRA r=8", "dora": "DoRA r=8", "aurora": "AuroRA r=2"}
MERGES = {
    "adapter, unmerged": "unmerged",
    "no adapter": "no adapter",
    "merged, nearest values": "nearest",
    "**merged, rounded by the inputs**": "by inputs",
    "merged, rounded by other texts": "by other texts",
}
"""Rows of the table of merges into 4 and 8 bits: `benchmarks/quantized_merge.py`."""
WAYS = {
    "no adapter": ("|", "no adapter"),
    "nearest": ("x", "nearest values"),
    "by inputs": ("o", "rounded by the inputs"),
}
"""Markers and names of the merges in the figure."""


def by_adapter(records: list[Record]) -> dict[tuple[str, int], list[Record]]:
    """The records of all seeds, by method and bits."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        found.setdefault((record["adapter"].partition("-")[0], record["bits"]), []).append(record)
    return {key: found[key] for method in SHOWN for key in sorted(found) if key[0] == method}


def merges_table(records: list[Record]) -> str:
    """What merges into 4 and 8 bits lose; the mean over the seeds, and of the KL divergence its range."""
    headers = ["adapter", "bits", "seeds", "model", "KL", "same top token %", "perplexity", "accuracy per char. %"]
    table = TextTable("", headers, align="lrrlrrrr")
    for (method, bits), group in by_adapter(records).items():
        for title, key in MERGES.items():
            rows = [record[key] for record in group]

            def mean(name: str, rows: list[Record] = rows) -> float:
                return float(statistics.mean(row[name] for row in rows))

            kl = same = ""
            if "kl" in rows[0]:
                least, most = (pick(row["kl"] for row in rows) for pick in (min, max))
                kl = f"{mean('kl'):.3f}" + (f" ({least:.3f} to {most:.3f})" if len(rows) > 1 else "")
                same = f"{100 * mean('same_top'):.1f}"
            ends = [f"{mean('perplexity'):.0f}", f"{100 * mean('accuracy'):.1f}"]
            table.rows.append([SHOWN[method], str(bits), str(len(rows)), title, kl, same, *ends])
    return table.markdown()


def by_format(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of all seeds of `benchmarks/gguf_merge.py`, by format and method."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["format"], record["adapter"]), []).append(record)
    return {key: found[key] for key in sorted(found, key=lambda key: (key[0], list(SHOWN).index(key[1])))}


def stored_table(records: list[Record]) -> str:
    """What merges into GGUF files lose: the mean KL divergence over the seeds, and its range."""
    headers = ["format", "adapter", "seeds", "measured on", "no adapter", "nearest values"]
    headers += ["**rounded by its texts**", "rounded by other texts", "same top token %"]
    table = TextTable("", headers, align="llrlrrrrr")
    for (kind, method), group in by_format(records).items():
        for genre in ("own texts", "other texts"):
            shown = []
            for way in ("no adapter", "nearest", "by inputs", "by other texts"):
                values = [record[way][genre]["kl"] for record in group if way in record]
                spread = f" ({min(values):.2g} to {max(values):.2g})" if way in ("nearest", "by inputs") else ""
                shown.append(f"{statistics.mean(values):.2g}{spread}")
            same = statistics.mean(record["by inputs"][genre]["same_top"] for record in group)
            title = genre.replace("own", "its")
            table.rows.append([kind, SHOWN[method], str(len(group)), title, *shown, f"{100 * same:.1f}"])
    return table.markdown()


def merges_by_format(merges: list[Record], stored: list[Record]) -> Figure:
    """KL divergence from the unmerged adapter on texts like those that it was trained on: one point a seed."""
    groups = {
        ({4: "NF4", 8: "LLM.int8()"}[bits], method): group for (method, bits), group in by_adapter(merges).items()
    }
    groups |= {
        (f"GGUF {kind}", method): [{way: record[way]["own texts"] for way in WAYS} for record in group]
        for (kind, method), group in by_format(stored).items()
    }
    formats = list(dict.fromkeys(kind for kind, _ in groups))
    figure, (ax,) = new_figure(1, 6.4, 1.2 + 0.38 * len(formats))
    for way, (marker, label) in WAYS.items():
        for (kind, method), group in groups.items():
            place = formats.index(kind) + 0.22 * (list(SHOWN).index(method) - 1)
            values = [record[way]["kl"] for record in group]
            ax.plot(values, [place] * len(values), marker, color=colour(method), alpha=0.7, markersize=5)
        ax.plot([], [], marker, color=GREY, label=label)
    for method, name in SHOWN.items():
        ax.plot([], [], "s", color=colour(method), label=name)
    ax.set_xscale("log")
    ax.set_yticks(range(len(formats)), formats)
    ax.set_ylim(len(formats) - 0.5, -0.5)
    ax.set_xlabel("KL divergence from the unmerged adapter, nats a token", fontsize=9)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", **GRID)
    legend(figure, ax)
    return figure


def compact_table(record: Record) -> str:
    """What a merge loses by statistics that were kept: `benchmarks/input_statistics.py`."""
    headers = ["eigenvectors kept", "MB a layer of LLaMA3-8B", *(f"KL, {kind}" for kind in record["kl"])]
    table = TextTable("", headers, align="lrrr")
    titles = {"no adapter": "no adapter", "nearest": "nearest values"} | {k: k for k in record["megabytes"]}
    for way, title in (titles | {"full": "all inputs"}).items():
        size = f"{record['megabytes'][way]:.2f}" if way in record["megabytes"] else ""
        table.rows.append([title, size, *(f"{found[way]:.3f}" for found in record["kl"].values())])
    return table.markdown()


def rounding_tables(record: Record) -> str:
    """Ways of rounding, the order of the blocks, and llmcompressor's GPTQ."""
    ways = TextTable("", ["way of rounding", "its texts %", "other texts %", "seconds"], align="lrrr")
    for way, row in record["ways"].items():
        name = f"**{way}**" if "(used)" in way else way
        shares = [f"{100 * row[of]:.1f}" for of in ("its texts", "other texts")]
        ways.rows.append([name, *shares, f"{row['seconds']:.0f}"])
    order = TextTable("", ["inputs of", "KL", "same top token %"], align="lrr")
    for inputs, row in record["order"].items():
        order.rows.append([inputs.removeprefix("inputs of "), f"{row['kl']:.3f}", f"{100 * row['same_top']:.1f}"])
    parts = [ways.markdown(), order.markdown()]
    if "llmcompressor" in record:
        parts.append(_reference_table(record["llmcompressor"]).markdown())
    return "\n\n".join(parts)


def _reference_table(rows: list[Record]) -> TextTable:
    """The geometric mean over the layers of each error as a share of llmcompressor's, and its range."""
    table = TextTable("", ["grid", "layers", "rounded by", "calibration inputs", "other inputs"], align="lrlrr")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        group = [row for row in rows if row["bits"] == bits]
        grid = {4: "int4, blocks of 64", 8: "int8, by row"}[bits]
        for way in ("nearest", "ours, its settings", "ours"):
            shares = []
            for inputs in ("calibration", "test"):
                ratios = [row[way][inputs] / row["llmcompressor"][inputs] for row in group]
                mean = statistics.geometric_mean(ratios)
                shares.append(f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            table.rows.append([grid, str(len(group)), way, *shares])
    return table


def cost_of_merges(record: Record) -> str:
    """The costs of `merge_quantized`, as sentences."""
    small, full = record["smollm2"], record["llama3_8b"]
    seconds = {name: statistics.median(values) for name, values in small.items()}
    wide = record["llama"][-1]
    hours, block = full["core_hours"], wide["seconds_a_block"]
    operations = sum(full["operations"].values())
    forward = 2 * full["operations"]["forward"] / 0.4 / 312e12
    other = 2 * (full["operations"]["moments"] + full["operations"]["rounding"]) / 0.5 / 19.5e12
    columns = 32 * (6 * 4096 + 14336)  # inputs of the seven projections of each block
    launches = columns * 2 * 10 * 10e-6
    return (
        f"SmolLM2-135M, seven projections a block, 256 texts, one core: `calibrate` {seconds['calibrate']:.0f} s, "
        f"`merge_quantized` {seconds['merge_quantized']:.0f} s "
        f"({seconds['merge_quantized'] / seconds['calibrate']:.1f} times as much; medians of "
        f"{len(small['calibrate'])}, in turn).\n\n"
        f"LLaMA3-8B within {full['memory']} of moments: {full['passes']} passes over {full['vectors']:,} tokens. "
        f"A block at three sixteenths of its widths takes {block['rounding']:.0f} s of one core to round and "
        f"{block['for 1,000 vectors']:.2f} s for every 1,000 tokens (predicted from two sixteenths: "
        f"{record['foretold']['rounding']:.0f} s). By the number of operations that is "
        f"{sum(hours.values()):.0f} core hours at full width, {hours['rounding']:.0f} of them for rounding; it is "
        f"{2 * operations / 1e15:.1f} PFLOP.\n\n"
        f"On an A100, by the same counts and not measured: {forward:.0f} s for the forward passes in bfloat16 (40% of "
        f"312 TFLOP/s), {other:.0f} s for moments and rounding in float32 (half of 19.5 TFLOP/s), and {launches:.0f} s "
        f"to launch ten kernels of 10 µs for each column, twice in each of {columns:,} columns: launches dominate, "
        "and an hour is far off. Memory: 16.1 GB for the model in bfloat16 and 9.4 GB for `down_proj`, the layer that "
        "needs most, are 25.5 GB: 40 GB hold both, 24 GB do not. `aurora merge` loads the "
        "model in float32: 32.1 GB and 9.4 GB."
    )
