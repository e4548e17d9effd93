"""The tables of a record of `python -m theory`."""

from collections.abc import Mapping
from typing import Any

from aurora_lora.forms import CALIBRATED, DYNAMIC, STATIC
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
