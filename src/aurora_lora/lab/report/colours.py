"""The one table of colours: a method has the same in every figure, and so has a form of AuroRA."""

from __future__ import annotations

import re
from typing import Any

from ...forms import CALIBRATED, DYNAMIC, STATIC

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
