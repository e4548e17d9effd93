"""The tables of docs/ranks.md: scores of ways to choose ranks, and `benchmarks/probe_cost.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from aurora_lora.data.metrics import metric_named
from aurora_lora.lab.report.measured import ranks_tables
from aurora_lora.lab.report.study import Answer
from aurora_lora.text_table import TextTable

USED = "S^2 by weight"
"""The score, with 256 examples and a deviation of 1/2, that the others are compared with."""


def scores_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Validation scores of each way at its best rate, and its difference from `USED`, paired by seed."""
    metric = metric_named(runs[0]["metric"])
    table = TextTable(
        "", ["ranks and start", "seeds", f"{metric.heading}, mean", "minus the first", "95% interval"], align="lr"
    )
    scores = pd.DataFrame(runs).pivot(index="seed", columns=["way", "learning_rate"], values="validation")
    ways = {way: scores[way][scores[way].mean().idxmax()].dropna() for way in scores.columns.unique("way")}
    for way in [USED, *(way for way in ways if way != USED)]:
        answer = Answer("", way, USED, metric.name, (ways[way] - ways[USED]).dropna().to_dict())
        against = answer.cells()[:2] if way != USED else ("", "")
        table.rows.append([way, str(len(ways[way])), metric.shown(ways[way].mean()), *against])
    return table.markdown()


def ranks_shown(record: Mapping[str, Any]) -> str:
    """What `aurora rank` prints, without the YAML.

    Args:
        record: its `ranks.json`.
    """
    return "\n\n".join(f"{table.title}:\n\n{table.markdown()}" for table in ranks_tables(record))


def cost_of_probe(record: Mapping[str, Any]) -> str:
    """As sentences."""
    llama, peak = record["llama3_8b"], record["peak_mb"]
    more = peak["probe"] - peak["steps"]
    operations = sum(llama["operations"].values())
    beside = f"{more:.0f} MiB more" if more > 0 else f"{-more:.0f} MiB less"
    return (
        f"SmolLM2-135M, {record['examples']} questions of wikihow-goal, up to {record['rank']} directions in each of "
        f"its linear layers, one core: {min(record['probe_s']):.0f} s, which is {100 * record['share_of_epoch']:.1f}% "
        f"of an epoch of {record['epoch']:,} such questions in batches of {record['batch']} "
        f"({min(record['step_s']):.1f} s a step; the least of {len(record['step_s'])} rounds in turn). The peak of the "
        f"memory is {peak['probe']:.0f} MiB, {beside} than that of a training step with LoRA r = 8 on query and "
        f"value ({peak['steps']:.0f} MiB).\n\n"
        f"LLaMA3-8B, by its shapes: beside its linear layers ({llama['weight_bytes'] / 2**30:.1f} GiB in bfloat16) and "
        f"the activations of a batch, the sketches of all layers take {llama['sketch_bytes'] / 2**30:.1f} GiB at once. "
        f"{llama['examples']} examples of {llama['tokens']} tokens are "
        f"{operations / 1e15:.1f} PFLOP: {operations / 1e14:.0f} s at 100 TFLOP/s."
    )
