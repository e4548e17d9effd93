"""`aurora report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aurora_lora.errors import UserError

from .printing import print_tables, say_written, stdout


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Runs, result files, studies, or folders of them.")
    ],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE.md", help="Insert the tables into this document, between its marks."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for forms.png and forms.svg.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write one page: scores, figures, times.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page, by default `Fine-tuning runs`.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write the page's figures as PNG and SVG, and its times."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="FIGURE",
            help="scores, ranks, rates, curves, updates, sigma, gap or merges; may be repeated.",
        ),
    ] = None,
) -> None:
    """Tables of AuroRA's forms or of a study; or a page, or figures, about any runs.

    Of a study, the chosen runs are shown.
    """
    if title is not None and html is None:
        raise UserError("--title goes with --html FILE.html")
    if only and figures is None:
        raise UserError("--only goes with --figures DIR")
    if html is not None or figures is not None:
        _page_and_figures(runs, html, title or "Fine-tuning runs", figures, only or [])
        if into is None and output is None:
            return
    from aurora_lora.lab.report.convergence import convergence_note
    from aurora_lora.lab.report.figures import save
    from aurora_lora.lab.report.forms_figure import forms_figure
    from aurora_lora.lab.report.sections import load_sections
    from aurora_lora.lab.report.study import study_tables
    from aurora_lora.lab.report.tables import forms_table, insert

    sections = load_sections(runs)
    for section in (section for section in sections if section.study is not None):
        assert section.study is not None
        print_tables(study_tables(section.study))
        stdout().print(convergence_note(section.groups))
    results = [result for section in sections if section.study is None for result in section.results]
    if not results and into is None and output is None:
        return
    table = forms_table(results)
    saved = [] if output is None else save(forms_figure(results), output / "forms")
    if into is None:
        print(table)
    else:
        insert(into, "forms", table)
        print(f"wrote the table into {into}")
    if saved:
        say_written(saved)


def _page_and_figures(runs: list[Path], html: Path | None, title: str, figures: Path | None, only: list[str]) -> None:
    from aurora_lora.lab.report.catalogue import write_figures
    from aurora_lora.lab.report.page import write_page
    from aurora_lora.lab.report.sections import load_sections

    sections = load_sections(runs)
    if html is not None:
        write_page(sections, html, title)
        print(f"wrote {html}")
    if figures is not None:
        written, left_out = write_figures(sections, figures, only)
        say_written(written)
        for line in left_out:
            print(line)
