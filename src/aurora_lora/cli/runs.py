"""Commands on runs: train, evaluate, gap, sigma, merge, export, report, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from aurora_lora.errors import UserError

from .common import Json, RunFolder, is_main, make_models, print_json, progress_bars, stderr, stdout

Split = Annotated[
    str | None, typer.Option("--split", help="train, validation or a test set; what the result reports by default.")
]

if TYPE_CHECKING:
    from aurora_lora.training.progress import ProgressBar


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train; see `aurora list recipes`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as training.epochs=1."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Fine-tune, choose the best epoch, calibrate, and score every form.

    Writes DIR/adapter/ with its model card, DIR/lora/ (an AuroRA adapter as a plain LoRA), DIR/result.json and
    DIR/recipe.yaml; `task: {name: dreambooth, ...}` also images. Interrupted at any moment, the same command goes on
    from the last checkpoint. A finished run is shown again.
    """
    from aurora_lora.experiments.kinds import load_any
    from aurora_lora.training.recipe import Recipe

    plan = load_any(recipe, overrides or ())
    if not isinstance(plan, Recipe):
        _train_subject(plan, output, as_json)
        return
    progress = progress_bars()
    make_models([plan.model])
    from aurora_lora.training.run import train as run_recipe
    from aurora_lora.training.summary import print_run, written

    names = iter((plan.method.name, plan.reference.method.name if plan.reference else ""))
    bars: list[ProgressBar] = []

    def callbacks() -> list[ProgressBar]:
        bars.append(progress(next(names)))
        return bars[-1:]

    try:
        run = run_recipe(plan, output, callbacks)
    finally:
        for bar in bars:
            bar.stop()
    if not is_main():
        return
    if as_json:
        paths = [str(path) for path in written(run)]
        print_json({"result": run.result, "reference": run.reference, "written": paths})
        return
    if run.was_finished:
        stderr().print(f"{output} holds this run, finished: nothing to train", highlight=False, soft_wrap=True)
    print_run(stdout(), run)


def _train_subject(plan: Any, output: Path, as_json: bool) -> None:
    """`aurora train` for subject-driven generation."""
    from aurora_lora.diffusion.progress import Bars, quiet

    quiet()
    from aurora_lora.diffusion.run import train_subject
    from aurora_lora.diffusion.summary import print_subject_run, written

    bars = Bars(stderr())
    try:
        run = train_subject(plan, output, bars)
    finally:
        bars.stop()
    if not is_main():
        return
    if as_json:
        print_json({"result": run.result, "reference": None, "written": [str(path) for path in written(run)]})
        return
    if run.was_finished:
        stderr().print(f"{output} holds this run, finished: nothing to train", highlight=False, soft_wrap=True)
    print_subject_run(stdout(), run)


def pretrain(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Such as vit-fashion-mnist; see `aurora list models`.")],
    as_json: Json = False,
) -> None:
    """Train a small model that no package has, once, into the cache.

    `aurora train` and `aurora reproduce` do it where it is needed. Interrupted, the same command goes on from the last
    checkpoint.
    """
    from aurora_lora.training.pretrain import RESULT_OF_PRETRAINING
    from aurora_lora.training.pretrain import pretrain as make

    bar = progress_bars()(name)
    try:
        folder = make(name, lambda: [bar])
    finally:
        bar.stop()
    result = json.loads((folder / RESULT_OF_PRETRAINING).read_text(encoding="utf-8"))
    if as_json:
        print_json({"folder": str(folder), "result": result})
        return
    from aurora_lora.training.results import examples_scored, heading, shown_score

    scores = result["metric"]["by_form"]["merged"]
    shown = ", ".join(f"{heading(metric)} {shown_score(metric, value)}" for metric, value in scores.items())
    print(f"{name} on {result['task']}, {examples_scored(result)}: {shown}")
    print(f"wrote {folder}")


def evaluate(
    folder: RunFolder,
    form: Annotated[
        str | None, typer.Option("--form", help="One form only: dynamic, static, calibrated, merged.")
    ] = None,
    split: Split = None,
    as_json: Json = False,
) -> None:
    """Score a finished run again."""
    from aurora_lora.training.finished import load_run
    from aurora_lora.training.trained import evaluate as score

    run = load_run(folder)
    bar = progress_bars()("scoring")
    try:
        scores = score(run, run.forms if form is None else (form,), split, [bar])
    finally:
        bar.stop()
    if as_json and is_main():
        print_json({"folder": str(folder), "split": split or ", ".join(run.test_sets), "by_form": scores})
    elif is_main():
        from aurora_lora.training.summary import print_scores

        title = f"{run.task.name}: {split or ', '.join(run.test_sets)}"
        print_scores(stdout(), title, run.recipe.method.name, scores, run.deployed_form)


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

    OUT must be new or empty, or hold this very merge, which is then left as it is.
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How far each mergeable form is from the trained one, by layer and end to end.

    Writes gap.json, gap.png and gap.svg.
    """
    from aurora_lora.files import check_writable, write_json
    from aurora_lora.report.figures import GAP, gap_figure, save
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
    write_json(target / GAP, record)
    written = [target / GAP, *save(gap_figure(record), (target / GAP).with_suffix(""))]
    if as_json:
        print_json({**record, "written": [str(path) for path in written]})
        return
    for table in found.tables():
        stdout().print(table)
    stdout().print("wrote " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)


def sigma(
    folder: RunFolder,
    examples: Annotated[
        int | None, typer.Option("--examples", help="At most so many inputs; those of the calibration by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the files go; DIR by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sigma of each layer before and after the training, with a histogram of what reaches it.

    Writes sigma.json, sigma.png and sigma.svg.
    """
    from aurora_lora.files import check_writable, write_json
    from aurora_lora.report.figures import save
    from aurora_lora.report.sigma_figure import SIGMA, sigma_figure
    from aurora_lora.training.finished import load_run
    from aurora_lora.training.sigma import sigma as measure

    run = load_run(folder)
    target = output or folder
    check_writable(target)
    progress_bars()
    with stderr().status("running the calibration inputs"):
        record = {"run": str(folder), **measure(run, examples)}
    write_json(target / SIGMA, record)
    written = [target / SIGMA, *save(sigma_figure(record), (target / SIGMA).with_suffix(""))]
    if as_json:
        print_json({**record, "written": [str(path) for path in written]})
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


def generate(
    folder: RunFolder,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="[V] in them stands for the subject.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the images.")] = ...,  # type: ignore[assignment]
    form: Annotated[
        str | None, typer.Option("--form", help="Of the adapter; the one that the run deploys by default.")
    ] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="The recipe's by default.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Of denoising; the recipe's by default.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Scale; the recipe's by default.")] = None,
    as_json: Json = False,
) -> None:
    """Generate images with a run of subject-driven generation: one file each, and grid.png with all."""
    from aurora_lora.diffusion.progress import quiet
    from aurora_lora.diffusion.trained import generate as make
    from aurora_lora.diffusion.trained import load_subject_run

    run = load_subject_run(folder)
    quiet()
    with stderr().status("generating"):
        written = make(
            run,
            prompts,
            output,
            form=form,
            seed=seed,
            images=images,
            inference_steps=steps,
            guidance_scale=guidance,
        )
    if as_json:
        print_json({"form": form or run.deployed_form, "written": [str(path) for path in written]})
        return
    for path in written:
        print(path)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Runs, result files, studies, or folders of them.")
    ],
    into: Annotated[
        Path | None, typer.Option("--into", metavar="FILE.md", help="A document with marks for the tables.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the figure forms.png / .svg goes.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="One page of any runs: scores, figures, times.")
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Fine-tuning runs",
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="The page's figures as PNG and SVG, its times.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="FIGURE", help="scores, ranks, curves, updates, sigma or gap; may be repeated."),
    ] = None,
) -> None:
    """The forms of AuroRA runs by learning rate, or the tables of a study; or a page, and figures, about any runs.

    Of a study, the chosen runs are shown.
    """
    if html is not None or figures is not None:
        _page_and_figures(runs, html, title, figures, only or [])
        if into is None and output is None:
            return
    elif only:
        raise UserError("--only goes with --figures DIR")
    from aurora_lora.report.figures import forms_figure, save
    from aurora_lora.report.sections import load_sections
    from aurora_lora.report.study import study_tables
    from aurora_lora.report.tables import forms_table, insert

    sections = load_sections(runs)
    for study in (section.study for section in sections if section.study is not None):
        for shown in study_tables(study):
            stdout().print(shown)
    results = [result for section in sections if section.study is None for result in section.results]
    if not results and into is None and output is None:
        return
    table = forms_table(results)
    if into is None:
        print(table)
    else:
        insert(into, "forms", table)
        print(f"wrote the table into {into}")
    if output is not None:
        print("wrote " + ", ".join(map(str, save(forms_figure(results), output / "forms"))))


def _page_and_figures(runs: list[Path], html: Path | None, title: str, figures: Path | None, only: list[str]) -> None:
    from aurora_lora.report.catalogue import write_figures
    from aurora_lora.report.page import write_page
    from aurora_lora.report.sections import load_sections

    sections = load_sections(runs)
    if html is not None:
        write_page(sections, html, title)
        print(f"wrote {html}")
    if figures is not None:
        written, left_out = write_figures(sections, figures, only)
        print("wrote " + ", ".join(map(str, written)))
        for line in left_out:
            print(line)


def predict(
    folder: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A merged model, or the folder of a run.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to judge; for images, the files.")],
    as_json: Json = False,
) -> None:
    """Label texts or image files, with the probability of each label."""
    from aurora_lora.training.trained import predict as answer

    progress_bars()
    answers = answer(folder, texts)
    if as_json:
        print_json(answers)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for one in answers:
        if "answer" in one:
            table.add_row(one["answer"], "", one["text"])
        elif "value" in one:
            table.add_row(f"{one['value']:+.2f}", one["text"])
        else:
            table.add_row(one["label"], f"{100 * one['probability']:.1f}%", one["text"])
    stdout().print(table)


COMMANDS = (train, pretrain, evaluate, merge, gap, sigma, export, generate, report, predict)
