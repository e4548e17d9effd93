"""The end of a run of subject-driven generation, 80 columns wide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ..data.metrics import METRICS
from ..train.finished_run import FinishedRun
from ..train.publish import ADAPTER, LORA, RECIPE, RESULT
from ..train.results import examples_scored, parameters, rate, scores_of
from .grid import GRID
from .run import FORMS, IMAGES


def print_subject_run(console: Console, run: FinishedRun) -> None:
    """Scores of every form, parameter counts, and what was written."""
    result = run.result
    console.print(replace(scores_of(result), title=f"{result['task']}: {examples_scored(result)}"))
    console.print(parameters(result), highlight=False)
    took, epochs = result["time"], result["epochs"]
    console.print(
        f"{epochs[-1]['step']} steps; {took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} images/s; "
        f"noise error {METRICS['noise_error'].shown(epochs[0]['validation']['noise_error'])} before it",
        highlight=False,
    )
    for path in written(run):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def written(run: FinishedRun) -> list[Path]:
    """What a run leaves behind."""
    paths = [run.folder / name for name in (RECIPE, IMAGES, GRID, FORMS, ADAPTER, LORA, RESULT)]
    return [path for path in paths if path.exists()]  # not every method is a LoRA
