"""How figures look, and writing them: the colours of methods and forms, panels, legends, PNG and SVG.

Series differ in marker and line as well as colour, for black-and-white print.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ...extras import extra
from ...files import new_file
from ...forms import CALIBRATED, DYNAMIC, STATIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "aurora": "#0072B2",
    "lora": "#D55E00",
    "dora": "#CC79A7",
    "moslora": "#009E73",
    "adalora": "#B8860B",
    "dylora": "#A6761D",
    "lora-drop": "#8C510A",
    "pissa": "#E69F00",
    "milora": "#F0B060",
    "lora-ga": "#C0392B",
    "loran": "#882255",
    "loda": "#AA4499",
    "sine-lora": "#661100",
    "sinelora": "#661100",
    "fourierft": "#999933",
    "hira": "#117733",
    "vera": "#CC6677",
    "neat": "#44AA99",
    "adapter": "#7B4FA3",
    "bitfit": "#6A8A22",
    "linear-probe": "#999999",
    "frozen": "#999999",
    "full": "#000000",
}
"""The colour of each method: Okabe and Ito's, Tol's muted ones and a few more. Not all of so many stay apart under a
colour blindness: names, markers and lines tell methods from each other, too."""

FORM_STYLES: dict[str, dict[str, Any]] = {
    DYNAMIC: {"color": "#002F5F", "marker": "o", "linestyle": "-"},
    STATIC: {"color": "#56B4E9", "marker": "s", "linestyle": "--"},
    CALIBRATED: {"color": COLOURS["aurora"], "marker": "^", "linestyle": "-."},
}
"""How AuroRA's forms are drawn: shades of its blue, with a marker and a line for each."""

GREY = "#666666"
"""The colour of what belongs to no method."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
LINES = ("-", "--", "-.", ":")


def colour(name: str, form: str = "") -> str:
    """The colour of a method, named as recipes do, or first in a label such as `AuroRA r=2 (static)`."""
    word = re.split(r"[\s:,(]", name.casefold())[0]
    known = max((key for key in COLOURS if word.startswith(key)), key=len, default="")
    known = known or next((key for key in COLOURS if word and key.startswith(word)), "")
    if known == "aurora":
        form = form or name.rpartition("(")[2].rstrip(")")
        return str(FORM_STYLES.get(form, FORM_STYLES[CALIBRATED])["color"])
    return COLOURS.get(known, GREY)


def style(place: int, name: str, form: str = "") -> dict[str, Any]:
    """Colour by method, marker and line by the place in the figure: the first 52 do not look alike in grey, either."""
    filled = {} if place < len(LINES) * 2 else {"markerfacecolor": "white"}
    marker, line = MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
    return {"color": colour(name, form), "marker": marker, "linestyle": line, **filled}


def check_matplotlib() -> None:
    """Raise a UserError where figures cannot be drawn."""
    with extra("report"):
        import matplotlib  # noqa: F401


GRID: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 0.6}
"""How the lines of a grid look."""


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
        ax.grid(axis="y", **GRID)
        ax.set_axisbelow(True)
    return figure, axes


WIDTH = 4.6
"""Inches: a page on a phone shrinks it little."""
LETTER = 0.058
"""Inches: of a letter of the names in a figure."""


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many names fit beside each other, in inches: of a letter, and of what stands before the names."""
    return max(1, min(len(names), int(width / (LETTER * max(map(len, names), default=0) + 0.5))))


def panels(names: Sequence[str], height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels of a height in inches all together, and room for a legend of these names."""
    return new_figure(columns, WIDTH, height + 0.17 * -(-len(names) // legend_columns(names, WIDTH)), rows=rows)


def fitted(label: str, inches: float) -> str:
    """A label of usual size in as many lines as it needs where so many inches are there for it."""
    return "\n".join(wrap(label, max(12, int(inches / (1.2 * LETTER)))))


def legend(figure: Figure, ax: Axes) -> None:
    """One legend for all panels, below them."""
    handles, names = ax.get_legend_handles_labels()
    columns = legend_columns(names, figure.get_figwidth())
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": 2.4, "columnspacing": 1.0}
    figure.legend(handles, names, loc="outside lower left", ncols=columns, **look)


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
        target = path.with_name(path.name + ending)  # a name may have dots: a learning rate
        # without a salt the names within an SVG are random
        with new_file(target) as partial, matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "path"}):
            literal(figure).savefig(partial, format=ending[1:], metadata={"Date": None} if ending == ".svg" else None)
            if ending == ".svg":
                partial.write_text(for_any_viewer(partial.read_text(encoding="utf-8")), encoding="utf-8")
        written.append(target)
    return written


def for_any_viewer(svg: str) -> str:
    """An SVG of matplotlib, as ImageMagick draws it, too: lines have an opacity, and no space is an empty glyph."""
    for space in re.findall(r'<path id="(\S+)" transform=', svg):
        svg = re.sub(f' *<use xlink:href="#{space}".*\n', "", svg)
    return re.sub(r"\b(stroke: #\w{6})", r"\1; stroke-opacity: 1", svg)
