"""Commands that lead from a trained run to a served one: merge, gap, sigma, export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_lora.errors import ArgumentError
from aurora_lora.files import check_writable

from .common import (
    Examples,
    FormOfRun,
    Json,
    MeasuredInto,
    Overwrite,
    RunFolder,
    Split,
    note,
    print_json,
    quiet,
    stderr,
    stdout,
    write_measured,
)

Out = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder.")]
WrittenIn = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Write it in float32, bfloat16 or float16.")]


def merge(
    folder: RunFolder,
    output: Out = ...,  # type: ignore[assignment]
    form: FormOfRun = None,
    dtype: WrittenIn = "float32",
    overwrite: Overwrite = False,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="nf4, fp4 or int8: merge into the base in this format.")
    ] = None,
    round_by_inputs: Annotated[
        bool,
        typer.Option("--round-by-inputs", help="Round so that outputs are kept, on the run's calibration inputs."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a stand-alone model that loads with plain Transformers.

    OUT must be new or empty. What was added to a merged model is never removed: then another folder must do.
    """
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.merging import merge as merge_run

    run = load_run(folder)
    quiet()
    options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "round_by_inputs": round_by_inputs}
    with stderr().status("merging"):
        merged = merge_run(run, output, form=form, overwrite=overwrite, **options)
    if as_json:
        lost = None if merged.rounding is None else merged.rounding.to_dict()
        more = {"dtype": dtype} if quantization is None else {**options, "rounding": lost}
        print_json({"folder": str(merged.folder), "form": merged.form, **more})
    else:
        written_in = quantization or (None if dtype == "float32" else dtype)
        kind = "a plain Transformers model" + ("" if written_in is None else f" in {written_in}")
        print(f"wrote {merged.folder}: {kind}, {merged.form} form")
        trained_on = run.recipe.base.quantization
        if trained_on is not None and quantization is None:
            print(f"its base is the {trained_on} one that the run was trained on, dequantised")
        elif trained_on not in (None, quantization):
            print(f"the run was trained on a base in {trained_on}: in {quantization} the base itself is another")
        if merged.rounding is not None:
            print(f"rounding costs {merged.rounding.summary}")


def gap(
    folder: RunFolder,
    split: Split = None,
    examples: Examples = None,
    merges: Annotated[
        bool, typer.Option("--merges", help="AuroRA: also merges in the base's own dtype and in bfloat16.")
    ] = False,
    quantization: Annotated[
        list[str] | None,
        typer.Option("--quantization", metavar="FORMAT", help="Also merges in nf4, fp4 or int8; may be repeated."),
    ] = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """Measure what a merge loses, by layer and end to end.

    Writes gap.json and figures.
    """
    from aurora_lora.lab.report.measured import GAP, gap_figure
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.measuring import gap as measure

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    quiet()
    split = split or run.test_sets[0]
    with stderr().status(f"running the forms on the {split} split"):
        report = measure(run, split=split, examples=examples, merges=merges or None, quantizations=quantization or ())
    record = {"run": str(folder), "split": split, **report.to_dict()}
    if not as_json:
        for table in report.tables():
            stdout().print(table)
    write_measured(target / GAP, record, {"gap": gap_figure} if record["layers"] else {}, run.subject, as_json)


def sigma(folder: RunFolder, examples: Examples = None, output: MeasuredInto = None, as_json: Json = False) -> None:
    """The learned activation of each layer, before and after training, with a histogram of its inputs.

    Writes sigma.json, sigma.png and sigma.svg.
    """
    from aurora_lora.lab.report.measured import SIGMA, sigma_figure
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.measuring import learned_activation as measure

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    quiet()
    with stderr().status("running the calibration inputs"):
        record = {"run": str(folder), **measure(run, examples=examples)}
    write_measured(target / SIGMA, record, {"sigma": sigma_figure}, run.subject, as_json)


def export(
    folder: RunFolder,
    output: Out = ...,  # type: ignore[assignment]
    form: FormOfRun = None,
    dtype: WrittenIn = "float32",
    all_layers: Annotated[
        bool,
        typer.Option("--all-layers", help="Add zeros for layers that are not adapted, for engines that need them all."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the adapter as a plain LoRA, exactly, for PEFT, vLLM and others, to be used without this package.

    Of a run of dreambooth, it is a LoRA file of diffusers. Beside LoRA's matrices an export has what else was trained,
    such as a classifier, which PEFT loads and vLLM does not: a line says so.
    """
    from aurora_lora.deploy.export import beyond_lora
    from aurora_lora.train.exporting import export as export_run
    from aurora_lora.train.finished_run import is_subject_run, load_run

    quiet()
    more: list[str] = []
    if is_subject_run(folder):
        from aurora_lora.diffusion.finished_run import export_subject, load_subject_run
        from aurora_lora.diffusion.pipeline import quiet as quiet_diffusers

        quiet_diffusers()
        if all_layers:
            raise ArgumentError("`all_layers`: a LoRA file of diffusers is read layer by layer, and needs no others")
        subject = load_subject_run(folder)
        written, used = export_subject(subject, output, form=form, dtype=dtype, overwrite=overwrite)
    else:
        run = load_run(folder)
        written, used = export_run(run, output, form=form, dtype=dtype, overwrite=overwrite, all_layers=all_layers)
        more = beyond_lora(written)
    if as_json:
        print_json({"folder": str(written), "form": used, "dtype": dtype})
    else:
        print(f"wrote {written}: a plain LoRA adapter, {used} form, {dtype}")
    if more:
        note(
            f"it holds {more[0]} too: PEFT loads that, vLLM, llama.cpp and most others do not: `aurora merge` for them"
        )


def push(
    folder: RunFolder,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Of the repository; it is made if need be.")],
    form: Annotated[
        str | None,
        typer.Option("--form", metavar="FORM", help="export: the plain LoRA, by default; adapter: as trained."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is seen by its owner alone.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's adapter, with its card and tokenizer, to the Hugging Face hub, or to HF_ENDPOINT.

    `hf auth login`, or HF_TOKEN, says who pushes.
    """
    from aurora_lora.train.exporting import push as upload
    from aurora_lora.train.finished_run import load_run

    run = load_run(folder)
    quiet()
    with stderr().status(f"pushing to {repo}"):
        address, what = upload(run, repo, form=form, private=private)
    if as_json:
        print_json({"repository": repo, "form": what, "url": address})
    else:
        print(f"pushed the {what} of {folder}: {address}")


COMMANDS = (merge, gap, sigma, export, push)
