"""The command `aurora gap`: what a merge loses, of a run or of any adapter of PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, Split, quiet
from .measured import Figures, MeasuredInto, check_place, write_measured
from .printing import complain, print_json, stderr, stdout

_PART_OF_FIGURE = {"gap": "layers", "merges": "merges"}
"""What of a report each figure is of."""


def gap(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a finished `aurora train`, or of any adapter of PEFT.")
    ],
    split: Split = None,
    examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", help="Use an even sample of N examples; by default all.")
    ] = None,
    merges: Annotated[
        bool, typer.Option("--merges", help="AuroRA: also merges in the base's own dtype and in bfloat16.")
    ] = False,
    quantization: Annotated[
        list[str] | None,
        typer.Option("--quantization", metavar="FORMAT", help="Also merges in nf4, fp4 or int8; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="BASE", help="For an adapter: its base model, if not the one in its config."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="For an adapter: texts to measure on, as in training, or .txt."),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help="Column of FILE with the texts, by default text.")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", metavar="NAME", help="Of FILE, as `cp1252`.")] = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """Measure what a merge loses, by layer and end to end.

    Writes gap.json and figures; for an adapter's folder, only with --output.
    """
    from aurora_lora.errors import UserError
    from aurora_lora.train.publish import RECIPE
    from aurora_lora.tuner.peft_names import CONFIG_NAME

    common: dict[str, Any] = {
        "quantizations": quantization or (),
        "examples": examples,
        "output": output,
        "as_json": as_json,
    }
    if not (folder / RECIPE).exists() and (data is not None or (folder / CONFIG_NAME).is_file()):
        if split is not None or merges:
            raise UserError("--split and --merges go with a run, not with the folder of an adapter")
        _adapter_gap(folder, model=model, data=data, column=column or "text", encoding=encoding, **common)
    else:
        if any(given is not None for given in (model, data, column, encoding)):
            raise UserError("--model, --data, --column and --encoding go with the folder of an adapter, not with a run")
        _run_gap(folder, split=split, merges=merges, **common)


def _run_gap(
    folder: Path,
    *,
    split: str | None,
    merges: bool,
    quantizations: Sequence[str],
    examples: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Do what `gap` does for the folder of a run."""
    from aurora_lora.lab.report.gap_figure import GAP
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.measuring import gap as measure

    run = load_run(folder)
    target = output or folder
    check_place(target / GAP, _PART_OF_FIGURE)
    quiet()
    split = split or run.test_sets[0]
    with stderr().status(f"running the forms on the {split} split"):
        found = measure(run, split=split, examples=examples, merges=merges or None, quantizations=quantizations)
    record = {"run": str(folder), "split": split, **found.to_dict()}
    if not as_json:
        for table in found.tables():
            stdout().print(table)
    write_measured(target / GAP, record, _gap_figures(record), run.subject, as_json)


def _adapter_gap(
    folder: Path,
    *,
    model: str | None,
    data: Path | None,
    column: str,
    encoding: str | None,
    quantizations: Sequence[str],
    examples: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Do what `gap` does for the folder of an adapter."""
    from aurora_lora.errors import UserError
    from aurora_lora.lab.report.gap_figure import GAP
    from aurora_lora.train.measuring import adapter_gap

    if data is None:
        raise UserError(f"{folder} is an adapter: --data FILE says on which texts its merges are measured")
    if output is not None:
        check_place(output / GAP, _PART_OF_FIGURE)
    quiet()
    with stderr().status(f"trying merges on {data.name}"):
        found = adapter_gap(
            folder,
            model,
            data,
            column=column,
            encoding=encoding,
            quantizations=quantizations,
            examples=examples,
        )
    if found.unlabelled is not None:
        complain(f"aurora: {found.unlabelled}")
    of = {"adapter": str(folder), "model": found.model, "data": str(data)}
    record = {**of, "texts": found.texts, "calibration_texts": found.calibration_texts, **found.gap.to_dict()}
    if not as_json:
        for table in found.gap.tables():
            stdout().print(table)
        if found.calibration_texts:
            print(f"measured on {found.texts:,} texts; merges by inputs round by {found.calibration_texts:,} others")
    if output is not None:
        write_measured(output / GAP, record, _gap_figures(record), f"{folder}, {data.name}", as_json)
    elif as_json:
        print_json(record)


def _gap_figures(record: dict[str, Any]) -> Figures:
    """The figures that a gap report has something for."""
    from aurora_lora.lab.report.gap_figure import gap_figure
    from aurora_lora.lab.report.merges_figure import merges_figure

    drawn_by = {"gap": gap_figure, "merges": merges_figure}
    return {name: drawn_by[name] for name, part in _PART_OF_FIGURE.items() if record[part]}
