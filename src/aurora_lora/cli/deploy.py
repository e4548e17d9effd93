"""Commands that lead from a trained run to a served one: merge, gap, sigma, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, RunFolder, Split, print_json, progress_bars, stderr, stdout

MeasuredInto = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
]


def merge(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the model.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", help="Which form to merge; the one that the run deploys by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another merged model in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write a stand-alone model that loads with plain Transformers.

    OUT must be new or empty, or hold this very merge, which is then left as it is. What was added to a merged model is
    never removed: then another folder must do.
    """
    from aurora_lora.training.finished import load_run
    from aurora_lora.training.trained import merge as merge_run

    run = load_run(folder)
    progress_bars()
    merged = merge_run(run, form, output, overwrite=overwrite)
    if as_json:
        print_json({"folder": str(merged.folder), "form": merged.form, "was_there": merged.was_there})
    elif merged.was_there:
        print(f"{merged.folder} already holds this merge ({merged.form} form)")
    else:
        print(f"wrote {merged.folder}: a plain Transformers model, {merged.form} form")


def gap(
    folder: RunFolder,
    split: Split = None,
    examples: Annotated[int | None, typer.Option("--examples", help="The first so many; all by default.")] = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """How far each mergeable form is from the trained one, by layer and end to end.

    Writes gap.json, gap.png and gap.svg.
    """
    from aurora_lora.files import check_writable
    from aurora_lora.report.figures import GAP, gap_figure
    from aurora_lora.training.deployed import gap as measure
    from aurora_lora.training.finished import load_run

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    progress_bars()
    split = split or run.test_sets[0]
    with stderr().status(f"running the forms on the {split} split"):
        found = measure(run, split, examples)
    record = {"run": str(folder), "split": split, **found.to_dict()}
    if not as_json:
        for table in found.tables():
            stdout().print(table)
    _write_measured(target / GAP, record, gap_figure, as_json)


def sigma(
    folder: RunFolder,
    examples: Annotated[
        int | None, typer.Option("--examples", help="At most so many inputs; those of the calibration by default.")
    ] = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """Sigma of each layer before and after the training, with a histogram of what reaches it.

    Writes sigma.json, sigma.png and sigma.svg.
    """
    from aurora_lora.files import check_writable
    from aurora_lora.report.sigma_figure import SIGMA, sigma_figure
    from aurora_lora.training.finished import load_run
    from aurora_lora.training.sigma import sigma as measure

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    progress_bars()
    with stderr().status("running the calibration inputs"):
        record = {"run": str(folder), **measure(run, examples)}
    _write_measured(target / SIGMA, record, sigma_figure, as_json)


def _write_measured(path: Path, record: dict[str, Any], figure: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    """Write what was measured on a run as JSON, its figure beside it where one can be drawn, and say so."""
    from aurora_lora.errors import UserError
    from aurora_lora.files import write_json
    from aurora_lora.report.figures import check_matplotlib, save

    write_json(path, record)
    written = [path]
    try:
        check_matplotlib()
    except UserError as error:
        stderr().print(f"no figure: {error}", markup=False, highlight=False, soft_wrap=True)
    else:
        written += save(figure(record), path.with_suffix(""))
    if as_json:
        print_json({**record, "written": [str(each) for each in written]})
        return
    stdout().print("wrote " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)


def export(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the LoRA.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", help="Which form to export; the one that the run deploys by default.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write the adapter as a plain LoRA, exact, for PEFT, vLLM and others: it needs nothing of this package.

    Of a run of dreambooth, it is a LoRA file of diffusers.
    """
    from aurora_lora.training.deployed import export as export_run
    from aurora_lora.training.finished import load_run

    progress_bars()
    if (subject := _subject_run(folder)) is not None:
        from aurora_lora.diffusion.trained import export_subject

        written, used = export_subject(subject, form, output, dtype=dtype, overwrite=overwrite)
    else:
        written, used = export_run(load_run(folder), form, output, dtype=dtype, overwrite=overwrite)
    if as_json:
        print_json({"folder": str(written), "form": used, "dtype": dtype})
    else:
        print(f"wrote {written}: a plain LoRA adapter, {used} form, {dtype}")


def _subject_run(folder: Path) -> Any:
    """The run of subject-driven generation in a folder, or None."""
    from aurora_lora.training.finished import is_subject_run

    if not is_subject_run(folder):
        return None
    from aurora_lora.diffusion.progress import quiet
    from aurora_lora.diffusion.trained import load_subject_run

    quiet()
    return load_subject_run(folder)


COMMANDS = (merge, gap, sigma, export)
