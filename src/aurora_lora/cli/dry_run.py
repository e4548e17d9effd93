"""`aurora train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from .common import Stages, importing, quiet
from .printing import complain, print_json, stdout

if TYPE_CHECKING:
    from aurora_lora.train.recipe import RunRecipe


def show(plan: RunRecipe, output: Path | None, gpu: str | None, as_json: bool, stage: Stages) -> None:
    """Print what the run of a recipe will be."""
    quiet()
    stage(f"loading the data of {plan.task_title}")
    with importing():
        from aurora_lora.data.access import why_no_access
        from aurora_lora.diffusion.progress import quiet as quiet_diffusers
        from aurora_lora.lab.experiments.dry_run import dry_run, run_lines, run_rows
        from aurora_lora.machine import launched_as_main
        from aurora_lora.train.recipe import Recipe

    if not isinstance(plan, Recipe):
        stage(f"estimating memory and time of {plan.model}")
        quiet_diffusers()
        if (why := why_no_access(plan.model)) is not None:
            complain(f"note: {why}")  # of a recipe whose data are loaded, it is an error

    def say(lines: Iterable[str]) -> None:
        stage(f"estimating memory and time of {plan.model}")
        for line in lines:
            complain(f"{plan.method.name}: {line}")

    record = dry_run(plan, gpu, output, say)
    stage.done()
    if not launched_as_main():
        return
    if as_json:
        print_json(record)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in run_rows(record):
        table.add_row(name, value)
    stdout().print(table)
    for line in run_lines(record):
        stdout().print(line)
