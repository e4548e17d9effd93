"""Commands that lead from a trained run to a served one: merge, gap, sigma, export, push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_lora.errors import UserError
from aurora_lora.files import check_writable

from .common import (
    Encoding,
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

if TYPE_CHECKING:
    from aurora_lora.train.adapters import Texts

Out = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder.")]
AnyAdapter = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a finished `aurora train`, or of any adapter of PEFT.")
]
LikeModel = Annotated[
    str | None,
    typer.Option("--hf-model", metavar="MODEL", help="For a GGUF file: the model with its tokenizer and config."),
]
TextFile = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="For an adapter: texts, as in training, or .txt.")
]
Column = Annotated[
    str | None, typer.Option("--column", metavar="NAME", help="Column of FILE with the texts, by default text.")
]
WrittenIn = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Write it in float32, bfloat16 or float16.")]


def merge(
    folder: AnyAdapter,
    output: Out = ...,  # type: ignore[assignment]
    form: FormOfRun = None,
    dtype: WrittenIn = "float32",
    overwrite: Overwrite = False,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantization", help="nf4, fp4 or int8, of a run; or w4a16, w8a8, fp8, nvfp4, mxfp4, ... of both."
        ),
    ] = None,
    round_by_inputs: Annotated[
        bool,
        typer.Option("--round-by-inputs", help="Round so that outputs are kept, on the run's calibration inputs."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="BASE", help="For an adapter: a GGUF file, or a quantised folder."),
    ] = None,
    data: TextFile = None,
    hf_model: LikeModel = None,
    column: Column = None,
    encoding: Encoding = None,
    examples: Examples = None,
    as_json: Json = False,
) -> None:
    """Write a stand-alone model that loads with plain Transformers; of an adapter and BASE, a copy of BASE.

    OUT must be new or empty. What was added to a merged model is never removed: then another folder must do. A copy of
    BASE is rounded by the texts of FILE, but for some that say what is lost; without FILE by the input statistics that
    were kept beside the adapter. On a base in float --quantization makes a folder of compressed-tensors, for vLLM.
    """
    from aurora_lora.deploy.statistics import STATISTICS_FILE
    from aurora_lora.train.deploying import merge as merge_run
    from aurora_lora.train.finished_run import load_run

    given = {"model": model, "data": data, "hf_model": hf_model, "column": column, "encoding": encoding}
    if _is_adapter(folder, **given, examples=examples):
        if form or round_by_inputs or overwrite or dtype != "float32":
            raise UserError("--form, --dtype, --round-by-inputs and --overwrite go with a run")
        if model is None and quantization is None:
            raise UserError(f"{folder} is an adapter: --model BASE is the GGUF file or folder to merge it into")
        kept = data is None and quantization is None and (folder / STATISTICS_FILE).is_file()
        texts = None if kept else _texts(folder, data, column, encoding, examples)
        _merge_adapter(folder, model, texts, output, hf_model, quantization, as_json)
        return
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


def _is_adapter(folder: Path, **given: Any) -> bool:
    """Whether it is the folder of an adapter and not of a run.

    Raises:
        UserError: it is that of a run, and options are given that go with an adapter.
    """
    from aurora_lora.train.publish import RECIPE

    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if (folder / RECIPE).exists() or not (named or (folder / "adapter_config.json").is_file()):
        if named:
            raise UserError(f"{named[0]} goes with an adapter; the run's own is {folder}/adapter")
        return False
    return True


def _texts(folder: Path, data: Path | None, column: str | None, encoding: str | None, examples: int | None) -> Texts:
    from aurora_lora.train.adapters import Texts

    if data is None:
        raise UserError(f"{folder} is an adapter: --data FILE has the texts to round by and to measure on")
    return Texts(data, column or "text", encoding, examples)


def _merge_adapter(
    folder: Path,
    model: str | None,
    texts: Texts | None,
    output: Path,
    like: str | None,
    into: str | None,
    as_json: bool,
) -> None:
    """Merge into a copy of what is served, and say what that loses."""
    from aurora_lora.train.adapters import AdapterOfPeft, merge_adapter

    quiet()
    report = merge_adapter(AdapterOfPeft.read(folder, model, like), texts, output, into, progress=not as_json)
    if as_json:
        print_json({"file": str(output), "model": model, "rounding": report.to_dict()})
        return
    for table in report.tables():
        stdout().print(table)
    print(f"wrote {output}: it loses {report.summary}")


def _check_merged(
    adapter: Path,
    merged: Path,
    model: str | None,
    hf_model: str | None,
    texts: Texts,
    max_kl: float | None,
    as_json: bool,
) -> None:
    """Compare what was written with the unmerged adapter; exit 1 where it is none, or beyond the bound."""
    from aurora_lora.deploy.predictions import end_to_end_table
    from aurora_lora.train.adapters import check_merged

    quiet()
    with stderr().status(f"comparing on {texts.file.name}"):
        found = check_merged(adapter, merged, texts, model, hf_model)
    wrong = list(found.accidents)
    kl = found.merged.kl or 0.0
    if max_kl is not None and not kl <= max_kl:
        wrong.append(f"KL {kl:.5f} is above --max-kl {max_kl:g}")
    if as_json:
        print_json({"adapter": str(adapter), "merged": str(merged), **asdict(found), "wrong": wrong})
    else:
        stdout().print(end_to_end_table(texts.file.name, (found.without, found.merged), found.predictions))
    for line in wrong:
        note(line)
    if wrong:
        raise typer.Exit(1)


def gap(
    folder: AnyAdapter,
    split: Split = None,
    examples: Examples = None,
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
    data: TextFile = None,
    merged: Annotated[
        Path | None,
        typer.Option("--merged", metavar="OUT", help="For an adapter: check this merged model, a GGUF file or folder."),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", metavar="X", help="With --merged: exit 1 beyond this KL divergence.")
    ] = None,
    hf_model: LikeModel = None,
    column: Column = None,
    encoding: Encoding = None,
    output: MeasuredInto = None,
    as_json: Json = False,
) -> None:
    """Measure what a merge loses, by layer and end to end.

    Writes gap.json and figures; for an adapter's folder, only with --output.
    """
    from aurora_lora.lab.report.measured import GAP, gap_figure
    from aurora_lora.train.adapters import adapter_gap
    from aurora_lora.train.finished_run import load_run
    from aurora_lora.train.measuring import gap as measure

    given = {"data": data, "merged": merged, "max_kl": max_kl, "hf_model": hf_model}
    run = None if _is_adapter(folder, model=model, **given, column=column, encoding=encoding) else load_run(folder)
    if run is None and (split is not None or merges):
        raise UserError("--split and --merges go with a run, not with the folder of an adapter")
    if merged is not None:
        if quantization or output is not None:
            raise UserError("--quantization and --output do not go with --merged, which is one merge that is there")
        texts = _texts(folder, data, column, encoding, examples)
        _check_merged(folder, merged, model, hf_model, texts, max_kl, as_json)
        return
    if max_kl is not None or hf_model is not None:
        raise UserError("--max-kl and --hf-model go with --merged")
    target = output if run is None else output or folder
    if target is not None:
        check_writable(target)
    quiet()
    said = None
    if run is not None:
        split = split or run.test_sets[0]
        with stderr().status(f"running the forms on the {split} split"):
            options: dict[str, Any] = {"examples": examples, "quantizations": quantization or ()}
            report = measure(run, split=split, merges=merges or None, **options)
        record: dict[str, Any] = {"run": str(folder), "split": split}
        subject = run.subject
    else:
        texts = _texts(folder, data, column, encoding, examples)
        with stderr().status(f"trying merges on {texts.file.name}"):
            found = adapter_gap(folder, texts, model, quantization or ())
        report, subject = found.gap, f"{folder}, {texts.file.name}"
        record = {"adapter": str(folder), "model": found.model, "data": str(data)}
        record |= {"texts": found.texts, "calibration_texts": found.calibration_texts}
        if found.calibration_texts:
            said = f"measured on {found.texts:,} texts; merges by inputs round by {found.calibration_texts:,} others"
    record |= report.to_dict()
    if not as_json:
        for table in report.tables():
            stdout().print(table)
        if said:
            print(said)
    if target is not None:
        write_measured(target / GAP, record, {"gap": gap_figure} if record["layers"] else {}, subject, as_json)
    elif as_json:
        print_json(record)


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
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the adapter as a plain LoRA, exactly, for PEFT, vLLM and others, to be used without this package.

    Of a run of dreambooth, it is a LoRA file of diffusers. Beside LoRA's matrices an export has what else was trained,
    such as a classifier, which PEFT loads and vLLM does not: a line says so.
    """
    from aurora_lora.deploy.export import beyond_lora
    from aurora_lora.train.deploying import export as export_run
    from aurora_lora.train.finished_run import is_subject_run, load_run

    quiet()
    more: list[str] = []
    if is_subject_run(folder):
        from aurora_lora.diffusion.finished_run import export_subject, load_subject_run
        from aurora_lora.diffusion.pipeline import quiet as quiet_diffusers

        quiet_diffusers()
        subject = load_subject_run(folder)
        written, used = export_subject(subject, output, form=form, dtype=dtype, overwrite=overwrite)
    else:
        run = load_run(folder)
        written, used = export_run(run, output, form=form, dtype=dtype, overwrite=overwrite)
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and upload nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's adapter, with its card and tokenizer, to the Hugging Face hub, or to HF_ENDPOINT.

    `hf auth login`, or HF_TOKEN, says who pushes.
    """
    from aurora_lora.train.deploying import push as upload
    from aurora_lora.train.finished_run import load_run

    run = load_run(folder)
    quiet()
    with stderr().status(f"pushing to {repo}"):
        address, what, names = upload(run, repo, form=form, private=private, dry_run=dry_run)
    if as_json:
        print_json({"repository": repo, "form": what, "url": address, "files": names})
    elif dry_run:
        print(f"would push the {what} of {folder} to {repo}:", *names, sep="\n  ")
    else:
        print(f"pushed the {what} of {folder}: {address}")
