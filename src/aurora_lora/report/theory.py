"""The tables of `aurora theory`, for a terminal and for a document, from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

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


@dataclass(frozen=True)
class Section:
    """One table.

    Args:
        name: of its place in a document.
        title: what it shows, with its units.
        columns: headings; the first column is text, the others numbers.
        rows: cells.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        dashes = ["---", *("--:" for _ in self.columns[1:])]
        lines = [_row(self.columns), f"|{'|'.join(dashes)}|", *map(_row, self.rows)]
        return "\n".join([f"{self.title}:", "", *lines])

    def table(self) -> Table:
        """For a terminal of 80 columns."""
        from rich.table import Table

        table = Table()
        for column in self.columns:
            table.add_column(column, justify="left" if column is self.columns[0] else "right", overflow="fold")
        for cells in self.rows:
            table.add_row(*cells)
        return table


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sections(record: Record) -> Iterator[Section]:
    """Every table of a record, in the order of the paper's text."""
    yield from _appendix_c(record["appendix_c"])
    yield from _gradients(record["gradients"])
    yield from _linear(record["linear"])
    yield from _nonlinear(record["nonlinear"])


def _appendix_c(found: Record) -> Iterator[Section]:
    draws = sum(row["draws"] for row in found["cases"])
    yield Section(
        "theory-cases",
        f"Appendix C, Eq. 11 on {draws:,} random a, b and alpha: largest deviations",
        ("signs", "printed - dW", "printed - dW^T", "2nd singular value", "dW from LoRA's set", "LoRA from dW's set"),
        [
            (
                row["case"],
                f"{row['as_printed']:.1f}",
                *(_tiny(row[k]) for k in ("transposed", "second_singular_value", "lora_reaches_it", "it_reaches_lora")),
            )
            for row in found["cases"]
        ],
    )
    yield Section(
        "theory-reach",
        "The nearest B sigma(A) of rank 1 to [[1, -1], [1, -1]] / 2",
        ("sigma", "distance found"),
        [(SIGMA_NAMES[row["sigma"]], f"{row['distance']:.4f}") for row in found["reach"]],
    )


def _gradients(found: Record) -> Iterator[Section]:
    columns = [f"{row['sigma']}, {how}" for row in found["rows"] for how in ("random", "attacked")]
    yield Section(
        "theory-gradients",
        f"Proposition 2.2: largest |gradient| / bound, {found['draws']:,} random layers and attacked",
        ("gradient of", *columns),
        [
            (
                GRADIENT_NAMES[name],
                *(
                    f"{row[how][name]:.3f}" if row["attacked"][name] > 0 else "-"
                    for row in found["rows"]
                    for how in ("random", "attacked")
                ),
            )
            for name in GRADIENT_NAMES
        ],
    )
    yield Section(
        "theory-growth",
        "Largest gradient of A of 100 random layers, B times a factor",
        ("factor", "AuroRA", "LoRA"),
        [(f"{row['scale']:g}", f"{row['AuroRA']:.3g}", f"{row['LoRA']:.3g}") for row in found["growth"]],
    )


def _linear(found: Record) -> Iterator[Section]:
    by_sigma = {(row["activation"], row["spline"], row["skip"]): row for row in found["rows"]}
    rows: list[Sequence[str]] = [
        ("truncated SVD", "", _excess(found["svd"]["mean_square"]), _excess(found["svd"]["supremum"]), "", "")
    ]
    for activation, spline in dict.fromkeys((a, s) for a, s, _ in by_sigma):
        cells = []
        for skip in (False, True):
            row = by_sigma.get((activation, spline, skip))
            cells += [_excess(min(row[key])) if row else "-" for key in ("mean_square", "supremum")]
        rows.append((SIGMA_NAMES[activation], spline or "none", *cells))
    starts = len(found["rows"][0]["mean_square"])
    yield Section(
        "theory-linear",
        f"Proposition 2.1, linear M: least error found of {starts} searches, above the bound by",
        ("activation", "spline", "mean square", "supremum", "mean square, skip", "supremum, skip"),
        rows,
    )
    slip = found["slip"]
    yield Section(
        "theory-slip",
        "Two inputs x, x' with |x| = |x'| = 1 and A x = A x'",
        ("", "distance"),
        [
            ("A x and A x'", _tiny(slip["difference_of_z"])),
            ("B sigma(A x) and B sigma(A x')", _tiny(slip["difference_of_outputs"])),
            ("M x and M x'", f"{slip['difference_of_targets']:.3f}"),
        ],
    )


def _nonlinear(found: Record) -> Iterator[Section]:
    r = found["rank"]
    for spline in ("channelwise", "summed"):
        rows = []
        for row in found["rows"]:
            forms = [row[spline][form] for form in ("dynamic", "calibrated", "static")]
            shares = [row["floor"], row[f"linear_{r}"], row[f"linear_{2 * r}"], *forms]
            rows.append((row["target"], *(f"{100 * share:.1f}" for share in shares)))
        yield Section(
            f"theory-nonlinear-{spline}",
            f"Nonlinear targets, r = {r}, {spline} spline: % of E|f|^2 unexplained, held out",
            ("target", "floor", f"LoRA r={r}", f"LoRA r={2 * r}", "trained", "calibrated", "static"),
            rows,
        )


def _tiny(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _excess(ratio: float) -> str:
    """By how much a ratio is above 1; what is within rounding is shown as 0."""
    excess = ratio - 1
    return "0" if abs(excess) < 1e-12 else f"{excess:.0e}" if abs(excess) < 0.1 else f"{excess:.2f}"
