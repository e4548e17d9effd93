"""Tables and figures of docs/deploy.md: the forms at several rates, and calibration (`benchmarks/calibration.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from aurora_lora.data.metrics import METRICS
from aurora_lora.forms import DYNAMIC, FORMS, form_named
from aurora_lora.lab.report.figures import FORM_STYLES, draw_range, legend, new_figure
from aurora_lora.lab.report.tables import spread
from aurora_lora.text_table import TextTable

SHOWN = METRICS["accuracy"], METRICS["nll"]


def _by_form(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each learning rate and seed, a column for each form and metric."""
    rows = {
        (run["recipe"]["training"]["learning_rate"], run["seed"]): {
            (form, name): score for form, scores in run["metric"]["by_form"].items() for name, score in scores.items()
        }
        for run in results
    }
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def forms_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of each form by learning rate, over the seeds, and how far they are from the trained form's."""
    against = [f"{metric.name} - {DYNAMIC}" for metric in SHOWN]
    table = TextTable("", ["learning rate", "form", *(metric.column for metric in SHOWN), *against], align="l")
    for rate, runs in _by_form(results).groupby(level=0):
        for form in FORMS.values():
            cells = [spread([*runs[form.name, m.name]], m.decimals, m.scale) for m in SHOWN]
            gaps = [runs[form.name, m.name] - runs[DYNAMIC, m.name] for m in SHOWN]
            shown = [spread([*gap], m.decimals + 1, m.scale) for gap, m in zip(gaps, SHOWN, strict=True)]
            table.rows.append([f"{rate:g}", form.label, *cells, *(shown if form.name != DYNAMIC else ["", ""])])
    return table.markdown()


def forms_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy and negative log-likelihood of each form against the learning rate; bars are the range over seeds."""
    by_rate = dict([*_by_form(results).groupby(level=0)])
    figure, axes = new_figure(2, 7.2, 2.9)
    labels = "accuracy, %", "negative log-likelihood"
    for ax, metric, label in zip(axes, SHOWN, labels, strict=True):
        for offset, form in zip((-0.06, 0.0, 0.06), FORMS.values(), strict=True):
            scores = [(metric.scale * runs[form.name, metric.name]).tolist() for runs in by_rate.values()]
            places = [place + offset for place in range(len(by_rate))]
            draw_range(ax, places, scores, label=form.label, **FORM_STYLES[form.name])
        ax.set_xticks(range(len(by_rate)), [f"{rate:g}" for rate in by_rate])
        ax.set_xlabel("learning rate of the adapter")
        ax.set_ylabel(label)
    legend(figure, axes[0])
    axes[0].set_title(f"test accuracy, {max(map(len, by_rate.values()))} seeds", fontsize=9, loc="left")
    axes[1].set_title("lower is better", fontsize=9, loc="left")
    return figure


def calibration_table(curve: Mapping[str, Any]) -> str:
    """Calibration inputs against what the calibrated form gives: `benchmarks/calibration.py curve`."""
    runs, records = curve["runs"], curve["records"]
    table = TextTable("", ["form", "inputs", *(metric.column for metric in SHOWN), "KL from trained"], align="l")
    for form in ("dynamic", "static"):
        found = [run[form] for run in runs]
        table.rows.append(_curve_row(form_named(form).label, "", found))
    for size in sorted({record["inputs"] for record in records}):
        found = [record for record in records if record["inputs"] == size]
        table.rows.append(_curve_row("calibrated", f"{size:,}", found))
    return table.markdown()


def _curve_row(form: str, inputs: str, found: Sequence[Mapping[str, float]]) -> list[str]:
    cells = [form, inputs]
    cells += [spread([one[m.name] for one in found], m.decimals, m.scale) for m in SHOWN]
    return [*cells, spread([one["kl"] for one in found], 4)]


def cost_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """What a calibration costs: `benchmarks/calibration.py cost`."""
    table = TextTable(
        "",
        ["model", "inputs", "seconds", "share of an epoch of training", "peak memory over running the inputs"],
        align="l",
    )
    for cost in costs:
        share = f"1/{1 / cost['of_epoch']:.0f} ({cost['epoch_examples']:,} examples)"
        more = cost["peak_mb"]["calibrate"] - cost["peak_mb"]["none"]
        memory = f"{more:+.0f} MiB of {cost['peak_mb']['none']:,.0f} MiB"
        model = f"{cost['model']}, {cost['layers']} layers"
        table.rows.append([model, f"{cost['examples']:,}", f"{cost['calibrate_s']:.1f}", share, memory])
    return table.markdown()
