"""Figures of a benchmark's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_tables import Record, shown_case, title
from .colours import COLOURS
from .figures import GRID, legend, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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
