"""What commands that measure write: a JSON file, and its figures beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .printing import note, print_json, say_written

Figures = dict[str, Callable[[dict[str, Any]], Any]]
"""What draws what was measured, by the name of the file."""

MeasuredInto = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
]


def check_place(path: Path, figures: Iterable[str]) -> None:
    """Raise a UserError where `write_measured` could not write: asked before anything is measured.

    Args:
        path: of the JSON file; its folder is made if need be.
        figures: the names of those that may be drawn.
    """
    from aurora_lora.files import check_writable

    check_writable(path.parent)
    _check_no_links(path, figures)


def _check_no_links(path: Path, figures: Iterable[str]) -> None:
    from aurora_lora.errors import UserError

    for each in (path, *(path.with_name(f"{name}{suffix}") for name in figures for suffix in (".png", ".svg"))):
        if each.is_symlink():
            raise UserError(f"{each} is a link: what is measured is not written to where others have it lead")


def write_measured(path: Path, record: dict[str, Any], figures: Figures, subject: str, as_json: bool) -> None:
    """Write what was measured as JSON, its figures beside it where any can be drawn, and say so."""
    from aurora_lora.errors import UserError
    from aurora_lora.files import write_json
    from aurora_lora.lab.report.figures import about, check_matplotlib, save

    _check_no_links(path, figures)
    write_json(path, record)
    written = [path]
    try:
        check_matplotlib()
    except UserError as error:
        note(f"no figure: {error}")
    else:
        for name, figure in figures.items():
            written += save(about(figure(record), subject), path.with_name(name))
    if as_json:
        print_json({**record, "written": [str(each) for each in written]})
        return
    say_written(written)
