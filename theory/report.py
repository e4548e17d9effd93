"""The tables and figures of a record of `python -m theory`."""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from aurora_lora.forms import CALIBRATED, DYNAMIC, STATIC
from aurora_lora.lab.report.figures import COLOURS, FORM_STYLES, GRID, legend, new_figure
from aurora_lora.text_table import TextTable

Record = Mapping[str, Any]

GRADIENT_NAMES = {"A": "A", "B": "B", "H": "H", "spline_weight": "W_s", "x": "x"}
SIGMA_NAMES = {
    "LoRA": "LoRA (sigma = identity)",
    "tanh": "tanh",
    "leaky_relu": "LeakyReLU",
    "sigmoid": "sigmoid",
    "relu": "ReLU",
    "spline": "spline",
    None: "none",
}


def theory_tables(record: Record) -> dict[str, TextTable]:
    """Every table of a record by the name of its place in a document, in the order of the paper's text."""
    return {
        "theory-cases": _cases(record["appendix_c"]),
        "theory-reach": _reach(record["appendix_c"]),
        "theory-gradients": _gradients(record["gradients"]),
        "theory-growth": _growth(record["gradients"]),
        "theory-linear": _linear(record["linear"]),
        "theory-slip": _slip(record["linear"]["slip"]),
        "theory-nonlinear-channelwise": _nonlinear(record["nonlinear"], "channelwise"),
        "theory-nonlinear-summed": _nonlinear(record["nonlinear"], "summed"),
    }


def _cases(found: Record) -> TextTable:
    draws = sum(row["draws"] for row in found["cases"])
    table = TextTable(
        f"Appendix C, Eq. 11 on {draws:,} random a, b and alpha: largest deviations",
        ("signs", "printed - dW", "printed - dW^T", "2nd singular value", "dW from LoRA's set", "LoRA from dW's set"),
    )
    for row in found["cases"]:
        zeros = ("transposed", "second_singular_value", "lora_reaches_it", "it_reaches_lora")
        table.rows.append((row["case"], f"{row['as_printed']:.1f}", *(_tiny(row[name]) for name in zeros)))
    return table


def _reach(found: Record) -> TextTable:
    return TextTable(
        "The nearest B sigma(A) of rank 1 to [[1, -1], [1, -1]] / 2",
        ("sigma", "distance found"),
        [(SIGMA_NAMES[row["sigma"]], f"{row['distance']:.4f}") for row in found["reach"]],
    )


def _gradients(found: Record) -> TextTable:
    both = [(row, how) for row in found["rows"] for how in ("random", "attacked")]
    table = TextTable(
        f"Proposition 2.2: largest |gradient| / bound, {found['draws']:,} random layers and attacked",
        ("gradient of", *(f"{row['sigma']}, {how}" for row, how in both)),
    )
    for key, name in GRADIENT_NAMES.items():
        cells = [f"{row[how][key]:.3f}" if row["attacked"][key] > 0 else "-" for row, how in both]
        table.rows.append((name, *cells))
    return table


def _growth(found: Record) -> TextTable:
    return TextTable(
        "Largest gradient of A of 100 random layers, B times a factor",
        ("factor", "AuroRA", "LoRA"),
        [(f"{row['scale']:g}", f"{row['AuroRA']:.3g}", f"{row['LoRA']:.3g}") for row in found["growth"]],
    )


def _linear(found: Record) -> TextTable:
    starts = len(found["rows"][0]["mean_square"])
    table = TextTable(
        f"Proposition 2.1, linear M: least error found of {starts} searches, above the bound by",
        ("activation", "spline", "mean square", "supremum", "mean square, skip", "supremum, skip"),
    )
    keys = ("mean_square", "supremum")
    table.rows.append(("truncated SVD", "", *(_excess(found["svd"][key]) for key in keys), "", ""))
    by_sigma = {(row["activation"], row["spline"], row["skip"]): row for row in found["rows"]}
    for activation, spline in dict.fromkeys((a, s) for a, s, _ in by_sigma):
        both = [by_sigma.get((activation, spline, skip)) for skip in (False, True)]
        cells = [_excess(min(row[key])) if row else "-" for row in both for key in keys]
        table.rows.append((SIGMA_NAMES[activation], spline or "none", *cells))
    return table


def _slip(found: Record) -> TextTable:
    return TextTable(
        "Two inputs x, x' with |x| = |x'| = 1 and A x = A x'",
        ("", "distance"),
        [
            ("A x and A x'", _tiny(found["difference_of_z"])),
            ("B sigma(A x) and B sigma(A x')", _tiny(found["difference_of_outputs"])),
            ("M x and M x'", f"{found['difference_of_targets']:.3f}"),
        ],
    )


def _nonlinear(found: Record, spline: str) -> TextTable:
    r = found["rank"]
    table = TextTable(
        f"Nonlinear targets, r = {r}, {spline} spline: % of E|f|^2 unexplained, held out",
        ("target", "floor", f"LoRA r={r}", f"LoRA r={2 * r}", "trained", "calibrated", "static"),
    )
    for row in found["rows"]:
        forms = [row[spline][form] for form in (DYNAMIC, CALIBRATED, STATIC)]
        shares = [row["floor"], row[f"linear_{r}"], row[f"linear_{2 * r}"], *forms]
        table.rows.append((row["target"], *(f"{100 * share:.1f}" for share in shares)))
    return table


def _tiny(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _excess(ratio: float) -> str:
    """By how much a ratio is above 1; what is within rounding is shown as 0."""
    excess = ratio - 1
    return "0" if abs(excess) < 1e-12 else f"{excess:.0e}" if abs(excess) < 0.1 else f"{excess:.2f}"


# ---------------------------------------------------------------- figures

MARKERS = {"channelwise": "o", "summed": "s", None: "^"}
AURORA, LORA = COLOURS["aurora"], COLOURS["lora"]
SIGMAS = {"AuroRA": (AURORA, "o"), "AuroRA, summed": (FORM_STYLES[STATIC]["color"], "s"), "LoRA": (LORA, "^")}


def theory_figures(record: Record) -> dict[str, Figure]:
    """Every figure, by the name of its file."""
    return {
        "theory-circle": circle_figure(record),
        "theory-gradients": gradients_figure(record),
        "theory-linear": linear_figure(record),
        "theory-nonlinear": nonlinear_figure(record),
    }


def circle_figure(record: Record) -> Figure:
    """Appendix C: the directions of sigma(A) for A on the unit circle, a panel for each sigma."""
    images = record["appendix_c"]["circle"]
    figure, axes = new_figure(len(images), 1.75 * len(images), 2.0)
    for ax, (name, points) in zip(axes, images.items(), strict=True):
        ax.plot(*zip(*images["LoRA"], strict=True), color=LORA, linewidth=0.8, alpha=0.5)
        ax.plot(
            *zip(*points, strict=True), color=LORA if name == "LoRA" else AURORA, marker=".", markersize=3, linewidth=1
        )
        ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        ax.axhline(0, **GRID, zorder=0)
        ax.axvline(0, **GRID, zorder=0)
        ax.set_title("LoRA" if name == "LoRA" else SIGMA_NAMES[name], fontsize=9, loc="left")
        ax.set_xlabel("first entry of sigma(A)", fontsize=7)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("second entry", fontsize=7)
    return figure


def gradients_figure(record: Record) -> Figure:
    """Proposition 2.2: how near each gradient comes to its bound, random (hollow) and attacked (filled)."""
    figure, (ax,) = new_figure(1, 6.0, 2.8)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", **GRID)
    for i, row in enumerate(record["gradients"]["rows"]):
        color, marker = SIGMAS[row["sigma"]]
        for how, face in (("random", "white"), ("attacked", color)):
            there = [(row[how][name], place) for place, name in enumerate(GRADIENT_NAMES) if row["attacked"][name] > 0]
            ratios, places = zip(*there, strict=True)
            ax.plot(
                ratios,
                [place + 0.22 * (i - 1) for place in places],
                linestyle="none",
                marker=marker,
                markersize=5,
                color=color,
                markerfacecolor=face,
                label=f"{row['sigma']}, {how}",
            )
    ax.axvline(1, color="#000000", linewidth=1)
    ax.annotate("bound", (1, -0.75), xytext=(-4, 0), textcoords="offset points", fontsize=8, ha="right", va="center")
    ax.set_yticks(range(len(GRADIENT_NAMES)), list(GRADIENT_NAMES.values()))
    ax.set(xlim=(0, 1.05), ylim=(len(GRADIENT_NAMES) - 0.5, -1.0), xlabel="largest norm of the gradient / its bound")
    ax.set_ylabel("gradient of")
    legend(figure, ax)
    return figure


def linear_figure(record: Record) -> Figure:
    """Proposition 2.1 on a linear target: every search over its bound, by sigma; hollow without skip."""
    found = record["linear"]
    figure, axes = new_figure(2, 7.2, 3.0)
    activations = list(dict.fromkeys(row["activation"] for row in found["rows"]))
    for ax, key, label in (
        (axes[0], "mean_square", "mean square error / bound"),
        (axes[1], "supremum", "supremum / bound"),
    ):
        for j, (spline, marker) in enumerate(MARKERS.items()):
            for skip in (False, True):
                rows = [row for row in found["rows"] if row["spline"] == spline and row["skip"] == skip]
                points = [(activations.index(row["activation"]), value) for row in rows for value in row[key]]
                if not points:
                    continue
                ax.plot(
                    [place + 0.12 * (2 * j + skip - 2.5) for place, _ in points],
                    [value for _, value in points],
                    linestyle="none",
                    marker=marker,
                    markersize=4,
                    color=AURORA,
                    markerfacecolor=AURORA if skip else "white",
                    label=f"spline {spline or 'none'}{', skip' if skip else ''}",
                )
        ax.axhline(1, color="#000000", linewidth=1.2, label="bound, and truncated SVD", zorder=0)
        ax.set_xticks(range(len(activations)), [SIGMA_NAMES[name] for name in activations], fontsize=8)
        ax.set_xlabel("activation")
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0.95)
    legend(figure, axes[0])
    return figure


def nonlinear_figure(record: Record) -> Figure:
    """Nonlinear targets: what is left unexplained, by target, and along the gain of the first."""
    found = record["nonlinear"]
    r = found["rank"]
    figure, axes = new_figure(2, 7.2, 3.2)
    bars: dict[str, tuple[Callable[[Record], float], dict[str, Any]]] = {
        f"best linear, rank {r}": (lambda row: row[f"linear_{r}"], {"color": LORA, "hatch": "//"}),
        f"AuroRA, rank {r}, calibrated merge": (lambda row: row["channelwise"][CALIBRATED], {"color": AURORA}),
        f"AuroRA, rank {r}, as trained": (
            lambda row: row["channelwise"][DYNAMIC],
            {"color": FORM_STYLES[DYNAMIC]["color"]},
        ),
        f"floor of any adapter of rank {r}": (lambda row: row["floor"], {"color": "white", "edgecolor": "#000000"}),
    }
    for i, (label, (value, style)) in enumerate(bars.items()):
        places = [place + 0.2 * (i - 1.5) for place in range(len(found["rows"]))]
        axes[0].bar(places, [100 * value(row) for row in found["rows"]], 0.18, label=label, linewidth=0.6, **style)
    axes[0].set_xticks(range(len(found["rows"])), [row["target"] for row in found["rows"]], fontsize=8)
    axes[0].set_ylabel("unexplained, %")
    gains = [row["gain"] for row in found["gains"]]
    for key, line in (("linear", {"color": LORA, "marker": "s", "linestyle": "--"}), (DYNAMIC, FORM_STYLES[DYNAMIC])):
        axes[1].plot(gains, [100 * row[key] for row in found["gains"]], **line)
    axes[1].annotate("best linear", (gains[-1], 100 * found["gains"][-1]["linear"]), xytext=(0, 5), **_NOTE)
    axes[1].annotate("AuroRA, as trained", (gains[-1], 100 * found["gains"][-1][DYNAMIC]), xytext=(0, 5), **_NOTE)
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].set_xlabel("gain of the target B tanh(tanh(gain A x))")
    axes[1].set_ylabel("unexplained, %")
    axes[1].set_ylim(bottom=0)
    legend(figure, axes[0])
    return figure


_NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "right"}
