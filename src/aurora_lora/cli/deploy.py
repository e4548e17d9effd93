"""Commands that lead from a trained run to a served one: merge, gap, sigma, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, RunFolder, quiet
from .gap import gap
from .measured import MeasuredInto, check_place, write_measured
from .printing import note, print_json, stderr


def merge(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the model.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", metavar="FORM", help="Form to merge; by default the one that is deployed.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Write it in float32, bfloat16 or float16.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another merged model in OUT.")] = False,
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

    OUT must be new or empty, or hold this very merge, which is then left as it is. What was added to a merged model is
    never removed: then another folder must do.
    """
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.merging import merge as merge_run

    run = load_run(folder)
    quiet()
    with stderr().status("merging"):
        merged = merge_run(
            run,
            output,
            form=form,
            overwrite=overwrite,
            dtype=dtype,
            quantization=quantization,
            round_by_inputs=round_by_inputs,
        )
    written_in = quantization or (None if dtype == "float32" else dtype)
    kind = "a plain Transformers model" + ("" if written_in is None else f" in {written_in}")
    if as_json:
        record = {"folder": str(merged.folder), "form": merged.form, "was_there": merged.was_there}
        if quantization is None:
            record["dtype"] = dtype
        else:
            lost = None if merged.rounding is None else merged.rounding.to_dict()
            record |= {"quantization": quantization, "round_by_inputs": round_by_inputs, "rounding": lost}
        print_json(record)
    elif merged.was_there:
        print(f"{merged.folder} already holds this merge ({merged.form} form)")
    else:
        print(f"wrote {merged.folder}: {kind}, {merged.form} form")
        trained_on = run.recipe.base.quantization
        if trained_on is not None and quantization is None:
            print(f"its base is the {trained_on} one that the run was trained on, dequantised")
        elif trained_on not in (None, quantization):
            print(f"the run was trained on a base in {trained_on}: in {quantization} the base itself is another")
        if merged.rounding is not None:
            print(f"of what the adapter does in a layer, rounding costs {merged.rounding.summary}")


def sigma(
    folder: RunFolder,
    examples: Annotated[
        int | None,
        typer.Option("--examples", metavar="N", help="At most N inputs; by default those of the calibration."),
    ] = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """The learned activation of each layer, before and after training, with a histogram of its inputs.

    Writes sigma.json, sigma.png and sigma.svg.
    """
    from aurora_lora.lab.report.sigma_figure import SIGMA, sigma_figure
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.measuring import learned_activation as measure

    run = load_run(folder)
    target = output or folder
    check_place(target / SIGMA, ("sigma",))
    quiet()
    with stderr().status("running the calibration inputs"):
        record = {"run": str(folder), **measure(run, examples=examples)}
    write_measured(target / SIGMA, record, {"sigma": sigma_figure}, run.subject, as_json)


def export(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder for the LoRA.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", metavar="FORM", help="Form to export; by default the one that is deployed.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    all_layers: Annotated[
        bool,
        typer.Option("--all-layers", help="Add zeros for layers that are not adapted, for engines that need them all."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write the adapter as a plain LoRA, exactly, for PEFT, vLLM and others, to be used without this package.

    Of a run of dreambooth, it is a LoRA file of diffusers. Beside LoRA's matrices an export has what else was trained,
    such as a classifier, which PEFT loads and vLLM does not: a line says so.
    """
    from aurora_lora.deploy.export import beyond_lora
    from aurora_lora.errors import ArgumentError
    from aurora_lora.train.exporting import export as export_run
    from aurora_lora.train.finished_run import load_run

    quiet()
    more: list[str] = []
    if (subject := _subject_run(folder)) is not None:
        from aurora_lora.diffusion.finished_run import export_subject

        if all_layers:
            raise ArgumentError("`all_layers`: a LoRA file of diffusers is read layer by layer, and needs no others")
        written, used = export_subject(subject, output, form=form, dtype=dtype, overwrite=overwrite)
    else:
        written, used = export_run(
            load_run(folder), output, form=form, dtype=dtype, overwrite=overwrite, all_layers=all_layers
        )
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
        typer.Option(
            "--form",
            metavar="FORM",
            help="export: the plain LoRA, the default where there is one; adapter: as trained.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is seen by its owner alone.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's adapter, with its card and tokenizer, to the Hugging Face hub, or to HF_ENDPOINT.

    `hf auth login`, or HF_TOKEN, says who pushes.
    """
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.pushing import push as upload

    run = load_run(folder)
    quiet()
    with stderr().status(f"pushing to {repo}"):
        address, what = upload(run, repo, form=form, private=private)
    if as_json:
        print_json({"repository": repo, "form": what, "url": address})
    else:
        print(f"pushed the {what} of {folder}: {address}")


def _subject_run(folder: Path) -> Any:
    """The run of subject-driven generation in a folder, or None."""
    from aurora_lora.train.finished_run import is_subject_run

    if not is_subject_run(folder):
        return None
    from aurora_lora.diffusion.finished_run import load_subject_run
    from aurora_lora.diffusion.progress import quiet as quiet_diffusers

    quiet_diffusers()
    return load_subject_run(folder)


COMMANDS = (merge, gap, sigma, export, push)
