"""`--dry-run`: what one run or a whole suite would train, need and take, as records and as a person reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...data.models import is_missing
from ...diffusion.recipe import SubjectRecipe
from ...errors import abridged, counted
from ...text_table import TextTable
from ...train.data import notes
from ...train.kinds import kind_of
from ...train.publish import check_recipe
from ...train.recipe import Recipe, RunRecipe, examples_of_a_step, steps_of, steps_of_an_epoch
from ...train.run import check_contamination, load_data, load_splits
from .plan import Sizes, machine, needs
from .reproduce import Reproduction

ESTIMATES = "Memory and time are estimates from shapes"
LESS = (
    "A tenth of a GPU's memory is CUDA's. Smaller training.batch_size with more gradient_accumulation_steps, "
    "training.gradient_checkpointing=true or training.precision=bf16 need less."
)


def dry_run(
    recipe: RunRecipe, gpu: str | None = None, output: Path | None = None, say: Callable[[Iterable[str]], Any] = list
) -> dict[str, Any]:
    """What a run will train, whether it fits a machine, and how long it takes. Data are loaded and checked as a
    training does it; weights are not.

    Args:
        recipe: of the run.
        gpu: see `machine`.
        output: folder of the run, which is looked at alone.
        say: takes the lines about the data that a training begins with.
    """
    record, sizes, steps = dict[str, Any](), None, None
    if output is not None:
        check_recipe(output, recipe)
    if isinstance(recipe, Recipe):
        check_contamination(recipe)
        sizes = Sizes.known(recipe)
        if is_missing(recipe.model):
            say([f"{recipe.model} is pretrained first, and what makes its images is not there yet: no data are loaded"])
        else:
            loaded = load_splits(recipe)
            data = load_data(recipe, kind_of(recipe.task.definition).processor(recipe.base), loaded)
            record = data.record or {}
            say(notes(record))
            tokens = (fmean(of), max(of)) if (of := data.lengths.get("train")) else None
            examples = {name: len(split) for name, split in data.splits.items()}
            sizes = Sizes(examples, tokens, len(data.labels) or data.task.num_labels)
        if (rows := sizes.examples["train"]) is not None:
            epoch, of_a_step = steps_of_an_epoch(recipe.training, rows), min(examples_of_a_step(recipe.training), rows)
            steps = {"all": steps_of(recipe.training, rows), "epoch": epoch, "examples": of_a_step}
    elif isinstance(recipe, SubjectRecipe):
        steps = {"all": recipe.training.steps, "examples": examples_of_a_step(recipe.training)}
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model,
        "task": recipe.task_title,
        "method": recipe.method.name,
        **needs(recipe, machine(gpu), sizes),
        "examples": record.get("examples") or (sizes.examples if sizes else {}),
        "rows": record.get("packed"),
        "tokens": sizes.tokens if sizes else None,
        "steps": steps,
    }


def describe(todo: Reproduction, gpu: str | None = None) -> list[dict[str, Any]]:
    """One row for each run of a suite: what it is, what it needs on a machine (that of the suite, or else this one, if
    None), and whether it is done."""
    on, rows = machine(gpu or todo.suite.gpu), []
    known = {name: needs(job.recipe, on) for (name, seed), job in todo.jobs.items() if seed == todo.seeds[0]}
    for (name, seed), job in todo.jobs.items():
        about = {"model": job.recipe.model, "data": job.recipe.task.name, "method": job.recipe.method.name}
        there = {"status": job.status(), "folder": str(job.folder)}
        rows.append({"recipe": name, "seed": seed, **about, **known[name], **there})
    return rows


def plan_tables(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[TextTable]:
    """A table for each model, one line for each recipe, and below it what all runs come to."""
    left = [row for row in rows if row["status"] != "finished"]
    took = f"about {_time(sum(row['hours'] or 0.0 for row in left))}, one after the other"
    note = f"{counted(len(rows), 'run')}, {len(left)} of them to do: {took}. "
    if too_large := list(dict.fromkeys(row["recipe"] for row in left if not row["fits"])):
        note += f"{len(too_large)} of them do NOT fit in the {rows[0]['machine']}: {abridged(too_large, 3)}. {LESS} "
    for model in (models := list(dict.fromkeys(row["model"] for row in rows))):
        table = TextTable(f"{title}: {model}", ["recipe", "params", "memory", "time", "done"], align="lr")
        for recipe in dict.fromkeys(row["recipe"] for row in rows if row["model"] == model):
            first, *_ = runs = [row for row in rows if row["recipe"] == recipe]
            memory = f"{first['memory_gb']:.1f} GB{'' if first['fits'] else '!'}"
            done = f"{sum(row['status'] == 'finished' for row in runs)}/{len(runs)}"
            params = f"{first['params']['adapter'] / 1e6:,.3f}M"
            table.rows.append([recipe, params, memory, _time(first["hours"]), done])
        table.note = f"{note}{ESTIMATES}. Params are trained; the head is not among them." * (model == models[-1])
        yield table


def run_rows(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What one run of `dry_run` trains, needs and takes: a name and a value for each row."""
    params, tokens, steps = run["params"], run["tokens"], run["steps"]
    yield "model", f"{run['model']}, {params['total']:,} parameters in all"
    trained = f"{params['adapter']:,} trained ({100 * params['adapter'] / params['total']:.3g}%)"
    yield "method", f"{run['method']}, {trained}, {params['head']:,} in the head"
    sizes = ", ".join(f"{count:,} {name}" for name, count in run["examples"].items() if count is not None)
    packed = f"; packed into {run['rows']:,} rows to train on" if run["rows"] else ""
    yield "data", run["task"] + f": {sizes}{packed}" * bool(sizes)
    if tokens is not None:
        yield "tokens", f"{tokens[1]:,} in the longest text, {tokens[0]:,.0f} on average"
    if steps is not None:
        epochs = f", {steps['epoch']:,} an epoch" if "epoch" in steps else ""
        yield "steps", f"{steps['all']:,} in all{epochs}, of {steps['examples']:,} examples each"
    fits = "it fits" if run["fits"] else "it does NOT fit"
    yield "memory", f"about {max(run['memory_gb'], 0.1):.1f} GB at the peak, of {run['machine']}: {fits}"
    yield "time", "not known: the data were not loaded" if run["hours"] is None else f"about {_time(run['hours'])}"
    yield "", f"{'' if run['fits'] else LESS + ' '}{ESTIMATES}. Nothing was trained."


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{max(60 * hours, 1):.0f} min" if hours < 1 else f"{hours:,.1f} h"
