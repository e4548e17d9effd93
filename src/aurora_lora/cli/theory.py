"""`aurora theory`: the paper's propositions and its Appendix C, checked by computation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, quiet
from .printing import print_json, print_tables, say_written, stderr


def theory(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where theory.json and the figures go.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed.")] = 0,
    as_json: Json = False,
) -> None:
    """Check the paper's two propositions and its Appendix C by computation; about a minute.

    With --output, writes theory.json, and the figures as PNG and SVG.
    """
    from aurora_lora.files import check_writable, write_json
    from aurora_lora.lab.report.figures import check_matplotlib, save
    from aurora_lora.lab.report.theory import theory_tables
    from aurora_lora.lab.report.theory_figures import theory_figures
    from aurora_lora.lab.theory import run, total_steps
    from aurora_lora.train.progress import rounds_bar

    if output is not None:
        check_matplotlib()
        check_writable(output)
    quiet()
    with rounds_bar(stderr()) as bar:
        record = run(seed, bar("searching", total_steps()))
    written: list[Path] = []
    if output is not None:
        write_json(output / "theory.json", record)
        written = [output / "theory.json"]
        for name, figure in theory_figures(record).items():
            written += save(figure, output / name)
    if as_json:
        print_json({**record, "written": [str(path) for path in written]})
        return
    print_tables(theory_tables(record).values())
    if written:
        say_written(written)
