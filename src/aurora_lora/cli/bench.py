"""`aurora bench`: speed and memory against PEFT's LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, importing, quiet
from .printing import note, print_json, print_tables, say_written, stderr


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD]...", help="linear, minilm-l6, smollm2-135m, scaling; all by default."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where WORKLOAD.json and the figures go."),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="With torch.compile too. Models take long to build for a CPU: by default only the linear layer.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved rounds: pairs of each comparison.")] = 30,
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="Names joined by commas, beside the base and lora-r8; all by default."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Dtype of the base model: float32, bfloat16, float16.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads of PyTorch on the CPU; its own choice by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, in seconds: for a look at the output, not for its figures.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure again what DIR holds.")] = False,
    as_json: Json = False,
) -> None:
    """Measure speed and memory compared with PEFT's LoRA.

    A workload that DIR holds already is shown again, so an interrupted command resumes where it was.
    """
    with importing():
        import torch

        from aurora_lora.lab.bench import VARIANTS, Settings, units
        from aurora_lora.lab.bench import bench as measure
        from aurora_lora.lab.report.bench_figures import write_figures
        from aurora_lora.lab.report.bench_tables import tables
        from aurora_lora.lab.report.figures import check_matplotlib
        from aurora_lora.train.progress import rounds_bar

    wanted = units(workloads or (), compiled)
    names = tuple(VARIANTS) if variants is None else tuple(name.strip() for name in variants.split(","))
    threads = torch.get_num_threads() if threads is None else threads
    settings = Settings(rounds, threads, device, dtype, names, quick)
    if output is not None:
        check_matplotlib()
    quiet()
    records, written = [], []
    with rounds_bar(stderr()) as bar:
        for unit, record, was_there in measure(wanted, settings, output, bar, overwrite=overwrite):
            records.append(record)
            if output is not None:
                written += [output / f"{unit.name}.json", *write_figures(record, output / unit.name)]
            if was_there:
                note(f"{unit.name} was measured before: shown again")
            if not as_json:
                print_tables(tables(record))
    if as_json:
        print_json({"results": records, "written": [str(path) for path in written]})
    elif written:
        say_written(written)
