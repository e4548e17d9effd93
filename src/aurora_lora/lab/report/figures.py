"""Figures, as PNG and SVG; series differ in marker and line as well as colour, for black-and-white print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...extras import extra
from ...files import new_file
from ...forms import FORMS
from ...methods.targets import blocks_and_kinds
from ...tuner.peft_names import PEFT_PREFIX
from .colours import FORM_STYLES
from .tables import Result, by_learning_rate, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = "gap.json"
"""In the folder of a run: what `aurora gap` measured."""
MOST_COLUMNS = 3
"""Panels of the gap figure beside each other."""


def check_matplotlib() -> None:
    """Raise a UserError where figures cannot be drawn."""
    with extra("report"):
        import matplotlib  # noqa: F401


def new_figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of the common style, in inches, and its panels, row by row."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)  # no display, and no global state as with pyplot
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


LETTER = 0.058
"""Inches: of a letter of the names in a figure."""


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many names fit beside each other, in inches: of a letter, and of what stands before the names."""
    return max(1, min(len(names), int(width / (LETTER * max(map(len, names), default=0) + 0.5))))


def fitted(label: str, inches: float) -> str:
    """A label of usual size in as many lines as it needs where so many inches are there for it."""
    return "\n".join(wrap(label, max(12, int(inches / (1.2 * LETTER)))))


def legend(figure: Figure, ax: Axes, *, above: bool = False) -> None:
    """One legend for all panels, below them or above."""
    handles, names = ax.get_legend_handles_labels()
    columns = legend_columns(names, figure.get_figwidth())
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": 2.4, "columnspacing": 1.0}
    figure.legend(handles, names, loc="outside upper right" if above else "outside lower left", ncols=columns, **look)


def draw_range(ax: Axes, x: Sequence[float], values: Sequence[Sequence[float]], **look: Any) -> None:
    """The mean at each x, with the range as a bar; a gap in the line where there are no values."""
    there = [found or [math.nan] for found in values]
    means = [statistics.fmean(found) for found in there]
    down = [mean - min(found) for mean, found in zip(means, there, strict=True)]
    up = [max(found) - mean for mean, found in zip(means, there, strict=True)]
    ax.errorbar(x, means, [down, up], capsize=2.5 if max(map(len, there)) > 1 else 0, **look)


def about(figure: Figure, subject: str) -> Figure:
    """The figure with what it is about, task and model, above its own title."""
    lines = filter(None, (subject, figure.get_suptitle()))
    figure.suptitle("\n".join(lines), fontsize=8.5, x=0.01, ha="left")
    return figure


def literal(figure: Figure) -> Figure:
    """The figure with each `$` of a name as it is, where matplotlib would read mathematics; not those of its ticks."""
    from matplotlib.text import Text

    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # which gives them their texts
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG; `path` without its ending names both. The same figure gives the same files."""
    import matplotlib

    written = []
    for ending in (".png", ".svg"):
        target = path.with_suffix(ending)
        # without a salt the names within an SVG are random
        with new_file(target) as partial, matplotlib.rc_context({"svg.hashsalt": path.name}):
            literal(figure).savefig(partial, format=ending[1:], metadata={"Date": None} if ending == ".svg" else None)
        written.append(target)
    return written


def forms_figure(results: Sequence[Result]) -> Figure:
    """Accuracy and negative log-likelihood of each form against the learning rate; bars are the range over seeds."""
    groups = by_learning_rate(results)
    forms = {form for runs in groups.values() for run in runs for form in run["metric"]["by_form"]}
    if forms != FORMS.keys():
        raise UserError(f"the forms figure needs runs with the forms {', '.join(FORMS)}")
    every = (scores for runs in groups.values() for run in runs for scores in run["metric"]["by_form"].values())
    if not all({"accuracy", "nll"} <= scores.keys() for scores in every):
        raise UserError("the forms figure is for classification tasks, whose results have accuracy and nll")
    figure, axes = new_figure(2, 7.2, 2.9)
    rates = list(groups)
    places = range(len(rates))
    seeds = max(map(len, groups.values()))
    panels = (("accuracy", "accuracy, %", 100.0), ("nll", "negative log-likelihood", 1.0))
    for ax, (name, label, factor) in zip(axes, panels, strict=True):
        for offset, form in zip((-0.06, 0.0, 0.06), FORMS.values(), strict=True):
            scores = [[run["metric"]["by_form"][form.name][name] for run in groups[rate]] for rate in rates]
            values = [[factor * value for value in finite(found)] for found in scores]
            draw_range(ax, [place + offset for place in places], values, label=form.label, **FORM_STYLES[form.name])
        ax.set_xticks(list(places), [f"{rate:g}" for rate in rates])
        ax.set_xlabel("learning rate of the adapter")
        ax.set_ylabel(label)
    legend(figure, axes[0])
    axes[0].set_title(f"test accuracy, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=9, loc="left")
    axes[1].set_title("lower is better", fontsize=9, loc="left")
    first = next(iter(groups.values()))[0]
    return about(figure, f"{first['task']}, {first['model']}")


def gap_figure(*gaps: Mapping[str, Any]) -> Figure:
    """The relative error of each form, a panel for each kind of module, along the depth of the model.

    Args:
        gaps: `MergeGap.to_dict()` of runs that differ in their seed: the mean is drawn, bars are the range. What is not
            finite is a gap in the line.
    """
    # files of earlier versions have PEFT's prefix
    entries = [(entry["layer"].removeprefix(PEFT_PREFIX), entry) for gap in gaps for entry in gap["layers"]]
    places = blocks_and_kinds(layer for layer, _ in entries)
    kinds: dict[str, dict[str, dict[int | None, list[float]]]] = {}
    for layer, entry in entries:
        block, kind = places[layer]
        blocks = kinds.setdefault(kind, {}).setdefault(entry["form"], {})
        blocks.setdefault(block, []).extend(100 * value for value in finite([entry["relative_error"]]))
    if not kinds:
        raise UserError("the gap figure needs the gap of at least one layer")
    columns = min(len(kinds), MOST_COLUMNS)
    rows = -(-len(kinds) // columns)
    figure, axes = new_figure(columns, max(3.6, 2.4 * columns), 0.5 + 2.4 * rows, rows)
    every = [values for forms in kinds.values() for blocks in forms.values() for values in blocks.values()]
    top = max((value for values in every for value in values), default=0.0)
    for ax, (kind, forms) in zip(axes, kinds.items(), strict=False):
        for form, blocks in forms.items():
            along = sorted((block or 0, values) for block, values in blocks.items())
            x, drawn = [block for block, _ in along], [values for _, values in along]
            draw_range(ax, x, drawn, label=FORMS[form].label, **FORM_STYLES[form])
        ax.set_title(kind, fontsize=9, loc="left")
        if any(None in blocks for blocks in forms.values()):
            ax.set_xticks([])  # it is in no list of layers
        else:
            ax.set_xlabel("layer")
            ax.locator_params(axis="x", integer=True)
        ax.set_ylim(0, 1.05 * top if top > 0 else 1)
    for ax in axes[::columns]:
        ax.set_ylabel("error of the adapter's output, %", fontsize=9 if rows == 1 else 8)
    for ax in axes[len(kinds) :]:
        ax.set_axis_off()
    legend(figure, axes[0])
    return figure
