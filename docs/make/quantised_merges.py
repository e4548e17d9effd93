"""The tables and the costs of docs/quantised.md."""

import statistics
from collections.abc import Mapping
from typing import Any

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
        f"{2 * operations / 1e15:.1f} PFLOP, most of them in float32, so minutes on a GPU, which was not measured."
    )
