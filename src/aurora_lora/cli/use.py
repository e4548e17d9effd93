"""Commands that use what was trained: evaluate, generate, predict, chat."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from aurora_lora.errors import UserError, counted
from aurora_lora.machine import launched_as_main
from aurora_lora.text_table import printable
from aurora_lora.train import BATCH_SIZE

from .common import (
    Encoding,
    FormOfRun,
    Json,
    LoadedIn,
    Model,
    Overwrite,
    RunFolder,
    Split,
    complain,
    note,
    print_json,
    progress_bars,
    quiet,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from aurora_lora.train.predicting import Predictor


def evaluate(
    folder: RunFolder,
    form: Annotated[
        str | None, typer.Option("--form", metavar="FORM", help="One form only: dynamic, static or calibrated.")
    ] = None,
    split: Split = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="New examples with labels, for a run of your own data."),
    ] = None,
    encoding: Encoding = None,
    as_json: Json = False,
) -> None:
    """Score a finished run again, or on new examples.

    FILE is what `task.test_data` may be: .csv, .tsv, .json, .jsonl, .parquet or .arrow, a folder, or a data set of the
    hub. It is read with the columns and the classes of the run. Nothing is written.
    """
    from aurora_lora.train.finished_run import load_run, score_table
    from aurora_lora.train.measuring import evaluate as score
    from aurora_lora.train.measuring import evaluate_file

    if data is not None and split is not None:
        raise UserError("--split goes without --data: all examples of FILE are scored")
    if data is None and encoding is not None:
        raise UserError("--encoding goes with --data FILE")
    run = load_run(folder)
    quiet()
    with progress_bars() as bar:
        if data is None:
            scores = score(run, forms=form, split=split, callbacks=[bar("scoring")])
            shown = split or ", ".join(run.test_sets)
            record: dict[str, Any] = {"split": shown}
            title, notes = f"{run.task.name}: {shown}", list[str]()
        else:
            scored = evaluate_file(run, data, forms=form, encoding=encoding, callbacks=[bar("scoring")])
            scores, notes = scored.by_form, list(scored.notes)
            record = {"data": scored.name, "rows": scored.rows, "examples": scored.examples}
            title = f"{run.task.name}: {scored.name}, {scored.examples:,} examples"
    for line in notes:
        complain(f"aurora: {line}")
    if as_json and launched_as_main():
        print_json({"folder": str(folder), **record, "by_form": scores})
    elif launched_as_main():
        stdout().print(replace(score_table(run.recipe.method.name, scores, run.deployed_form), title=title))


def generate(
    folder: RunFolder,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="[V] in them stands for the subject.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for images.")] = ...,  # type: ignore[assignment]
    form: FormOfRun = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Images for each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed; by default the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps; by default the recipe's.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Scale; by default the recipe's.")] = None,
    as_json: Json = False,
) -> None:
    """Generate images with a run of subject-driven generation: one file each, and grid.png with all."""
    from aurora_lora.diffusion.finished_run import generate as make
    from aurora_lora.diffusion.finished_run import load_subject_run
    from aurora_lora.diffusion.pipeline import quiet as quiet_diffusers

    run = load_subject_run(folder)
    quiet_diffusers()
    options = {"form": form, "seed": seed, "images": images, "inference_steps": steps, "guidance_scale": guidance}
    with stderr().status("generating"):
        written = make(run, prompts, output, **options)  # type: ignore[arg-type]
    if as_json:
        print_json({"form": form or run.deployed_form, "written": [str(path) for path in written]})
        return
    for path in written:
        print(path)


def predict(
    folder: Model,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts to label, or image files; or FILE --output OUT.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.jsonl", help="Answer each row of FILE, into a line of OUT."),
    ] = None,
    form: FormOfRun = None,
    dtype: LoadedIn = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME", help="Column of FILE with the texts; by default as in training."),
    ] = None,
    encoding: Encoding = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Of a folder or a data set of the hub; else `train`.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Rows at a time.")] = BATCH_SIZE,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Label texts or image files, with the probability of each label, or answer them; also the rows of a file.

    FILE is what `task.data` may be: .csv, .tsv, .json, .jsonl, .parquet or .arrow, a folder, or a data set of the
    hub; of conversations, in any format that `aurora train chat` reads.
    """
    from aurora_lora.train.predicting import check_answers_file, load_predictor, predict_file

    if output is not None and len(texts) != 1:
        raise UserError("--output goes with one FILE, whose rows are answered")
    if output is None and (columns or encoding is not None or split is not None or overwrite):
        raise UserError("--column, --encoding, --split and --overwrite go with FILE --output OUT.jsonl")
    if output is not None:
        check_answers_file(texts[0], output, overwrite)
    quiet()
    with stderr().status("loading the model"):
        predictor = load_predictor(folder, form=form, dtype=dtype)
    if output is None:
        _label(predictor, texts, batch_size, as_json)
        return
    with stderr().status("answering") as status:
        done = predict_file(
            predictor,
            texts[0],
            output,
            columns or (),
            encoding=encoding,
            split=split,
            batch_size=batch_size,
            overwrite=overwrite,
            step=lambda done, of: status.update(f"answered {done:,} of {of:,} rows"),
        )
    _say_cut(done.cut, done.rows, done.cut_at)
    if as_json:
        print_json({"written": str(output), "rows": done.rows, "cut": done.cut})
        return
    of = "" if done.name == texts[0] else f" of {done.name}"  # of a folder's splits, one is answered
    print(f"wrote {output}: {counted(done.rows, 'row')}{of}")


def _label(predictor: Predictor, texts: list[str], batch_size: int, as_json: bool) -> None:
    """`aurora predict` of texts or image files."""
    if predictor.kind.facts.inputs == "text":
        for text in filter(os.path.isfile, texts):
            complain(f"aurora: {text} is a file: --output OUT.jsonl answers its rows")
    answers = predictor.answers(texts, batch_size=batch_size)
    cut = [one["cut_at"] for one in answers if "cut_at" in one]
    _say_cut(len(cut), len(answers), cut[0] if cut else None)
    if as_json:
        print_json(answers)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for one in answers:
        table.add_row(*map(printable, predictor.kind.shown(one)))
    stdout().print(table)


def _say_cut(count: int, of: int, max_length: int | None) -> None:
    if max_length is not None:
        complain(f"aurora: {count:,} of {of:,} texts are longer than {max_length:,} tokens and are cut")


def chat(
    folder: Model,
    form: FormOfRun = None,
    dtype: LoadedIn = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of each answer.")] = 256,
    system: Annotated[str | None, typer.Option("--system", help="What comes before the conversation.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the likeliest token each time.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of answers at a temperature.")] = 0,
) -> None:
    """Talk to a language model: each line is a message, and the answer is shown as it is written.

    A model that was trained on plain texts goes on with each line as it stands. The conversation goes on until the end
    of the input, or `/exit`; `/new` begins another one. A message that cannot be answered is reported, and
    counts as not said.
    """
    quiet()
    from aurora_lora.train.predicting import Talk, load_predictor

    with stderr().status("loading the model"):
        predictor = load_predictor(folder, form=form, dtype=dtype)
        talk = Talk(predictor, max_new_tokens, system=system, temperature=temperature, seed=seed)
    if talk.is_plain:
        note("the model was trained on plain text: what is typed is continued as it stands", style="dim")
    is_terminal, failed = sys.stdin.isatty(), False
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a message that is no text is refused, and those after it read
    if is_terminal:
        note("/new begins another conversation, /exit or Ctrl-D ends", style="dim")
    while True:
        if is_terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        said = line.strip()
        if not line or said == "/exit":
            break
        if said == "/new":
            talk.begin()
        elif said:
            try:
                talk.say(line.rstrip("\r\n") if talk.is_plain else said, lambda text: print(text, end="", flush=True))
                print(flush=True)
            except UserError as error:
                complain(str(error))
                failed = True
    if failed and not is_terminal:
        raise typer.Exit(2)
