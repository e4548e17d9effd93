"""`--dry-run`: what one run or a whole suite would train, need and take, as records and as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.models import is_missing
from ...errors import UserError, abridged, counted
from ...text_table import TextTable
from ...train.data import Data, notes
from ...train.kinds import kind_of
from ...train.models import longest_text, positions
from ...train.publish import check_recipe
from ...train.recipe import Recipe, RunRecipe, examples_of_a_step, steps_of_an_epoch
from ...train.run import check_contamination, load_data
from ...train.trainer import check_precision
from .plan import Sizes, architecture, machine, needs
from .reproduce import Reproduction
from .suite import Suite

Rows = Sequence[Mapping[str, Any]]
LESS = (
    "Smaller training.batch_size with more gradient_accumulation_steps, training.gradient_checkpointing=true or "
    "training.precision=bf16 need less."
)
ESTIMATES = "Memory and time are estimates from shapes"


def dry_run(
    recipe: RunRecipe, gpu: str | None = None, output: Path | None = None, say: Callable[[Iterable[str]], Any] = list
) -> dict[str, Any]:
    """What a run will train, whether it fits a machine, and how long it takes.

    Data are loaded and checked as a training does it; weights are not.

    Args:
        recipe: of the run.
        gpu: see `machine`.
        output: folder of the run, which is looked at alone.
        say: takes the lines about the data that a training begins with.

    Returns:
        `model`, `task`, `method`, what `needs` says, `examples` of each split, packed `rows`, `texts` and `steps`.

    Raises:
        UserError: what the training would say of the data, the folder and the method; the GPU is not known.
    """
    on, sizes = machine(gpu), None
    if output is not None:
        check_recipe(output, recipe)
    if on == machine(None):
        check_precision(recipe.training.precision)
    if isinstance(recipe, Recipe):
        check_contamination(recipe)
        data = None
        if is_missing(recipe.model):
            say([f"{recipe.model} is pretrained first, and what makes its images is not there yet: no data are loaded"])
        else:
            data = _load(recipe)
            say(notes(data.record or {}))
            examples = {name: len(split) for name, split in data.splits.items()}
            sizes = Sizes(examples, data.lengths, len(data.labels) or data.task.num_labels)
        of_data = _of_data(recipe, data, sizes or Sizes.known(recipe))
    else:
        steps = {"all": recipe.training.steps, "examples": examples_of_a_step(recipe.training)}
        of_data = {"examples": {}, "texts": None, "steps": steps}
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model,
        "task": recipe.task_title,
        "method": recipe.method.name,
        "budget": recipe.method.options.get("budget"),
        "reference": recipe.reference.method.name if isinstance(recipe, Recipe) and recipe.reference else None,
        **needs(recipe, on, sizes),
        **of_data,
    }


def _load(recipe: Recipe) -> Data:
    processor = kind_of(recipe.task.definition).processor(recipe.base)
    longest, config = longest_text(recipe.task.max_length, processor), architecture(recipe.model, recipe.base.revision)
    most = positions(config.get_text_config())
    if longest is not None and most is not None and longest > most:
        raise UserError(f"task.max_length: {longest} tokens are more than the {most} positions of {recipe.model}")
    return load_data(recipe, processor)


def _of_data(recipe: Recipe, data: Data | None, sizes: Sizes) -> dict[str, Any]:
    record, training = {} if data is None else data.record or {}, recipe.training
    known = {name: count for name, count in sizes.examples.items() if count is not None}
    found: dict[str, Any] = {"examples": record.get("examples") or known, "texts": None, "steps": None}
    if "packed" in record:
        found["rows"] = record["packed"]
    if (rows := known.get("train")) is not None:
        epoch = steps_of_an_epoch(training, rows)
        of_a_step = min(examples_of_a_step(training), rows)
        found["steps"] = {"epoch": epoch, "all": epoch * training.epochs, "examples": of_a_step}
    if data is not None and (lengths := data.lengths.get("train")):
        found["texts"] = {"mean": math.fsum(lengths) / len(lengths), "longest": max(lengths)}
    return found


def describe(todo: Reproduction, gpu: str | None = None) -> list[dict[str, Any]]:
    """One row for each run of a suite: what it is, what it needs, and whether it is done.

    Args:
        todo: the runs.
        gpu: the machine that the plan is for, see `machine`; that of the suite, or else this one, if None.

    Raises:
        UserError: a recipe's model or method cannot be had, or the GPU is not known.
    """
    on = machine(gpu or todo.suite.gpu)
    recipes = {name: job.recipe for (name, _), job in todo.jobs.items()}
    known = {name: needs(recipe, on) for name, recipe in recipes.items()}
    return [
        {
            "recipe": name,
            "seed": seed,
            "model": job.recipe.model,
            "data": job.recipe.task.name,
            "method": job.recipe.method.name,
            **known[name],
            "status": job.status(),
            "folder": str(job.folder),
        }
        for (name, seed), job in todo.jobs.items()
    ]


# ---------------------------------------------------------------- as a person reads it


def plan_tables(suite: Suite, rows: Rows) -> Iterator[TextTable]:
    """A table for each model, one line for each recipe."""
    for model in dict.fromkeys(row["model"] for row in rows):
        table = TextTable(f"{suite.title}: {model}", ["recipe", "params", "memory", "time", "done"], align="lr")
        for recipe in dict.fromkeys(row["recipe"] for row in rows if row["model"] == model):
            runs = [row for row in rows if row["recipe"] == recipe]
            first, done = runs[0], sum(row["status"] == "finished" for row in runs)
            memory = f"{first['memory_gb']:.1f} GB{'' if first['fits'] else '!'}"
            params = f"{first['params']['adapter'] / 1e6:,.3f}M"
            table.rows.append([recipe, params, memory, _time(first["hours"]), f"{done}/{len(runs)}"])
        yield table


def plan_lines(rows: Rows) -> Iterator[str]:
    """What it comes to: how many runs, on what, how long, and which do not fit."""
    left = [row for row in rows if row["status"] != "finished"]
    known = [row["hours"] for row in left if row["hours"] is not None]
    length = [f"about {_time(sum(known))} on one {rows[0]['machine']}, one after the other"] if known else []
    length += [f"{counted(len(left) - len(known), 'run')} of unknown length"] if len(left) > len(known) else []
    yield f"{counted(len(rows), 'run')}, {len(left)} of them to do{': ' * bool(length)}{', and '.join(length)}."
    if shares := _shares(left):
        yield f"Of that time {shares}."
    if too_large := [row["recipe"] for row in left if not row["fits"]]:
        where = f"the {rows[0]['machine_memory_gb']:.0f} GB of one {rows[0]['machine']}"
        yield f"{len(too_large)} of them do NOT fit in {where}: {abridged(list(dict.fromkeys(too_large)), 3)}. {LESS}"
    yield f"{ESTIMATES}. Params are trained; the head is not among them."


def run_rows(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What one run trains, needs and takes: a name and a value for each row.

    Args:
        run: of `dry_run`.
    """
    params, texts = run["params"], run["texts"]
    yield "model", f"{run['model']}, {params['total']:,} parameters in all"
    about = "" if run["budget"] is None else "about "
    trained = f"{about}{params['adapter']:,} trained ({100 * params['adapter'] / params['total']:.3g}%)"
    yield "method", f"{run['method']}, {trained}" + f", {params['head']:,} in the head" * (params["head"] > 0)
    if run["reference"] is not None:
        yield "reference", f"{run['reference']}, trained after it; in the memory and the time below"
    sizes = ", ".join(f"{count:,} {name}" for name, count in run["examples"].items())
    packed = f"; packed into {run['rows']:,} rows to train on" if "rows" in run else ""
    yield "data", run["task"] + f": {sizes}{packed}" * bool(sizes)
    if texts is not None:
        one = "row" if "rows" in run else "text"
        yield "tokens", f"{texts['longest']:,} in the longest {one}, {texts['mean']:,.0f} on average"
    if (steps := run["steps"]) is not None:
        epochs = f", {steps['epoch']:,} an epoch" if "epoch" in steps else ""
        yield "steps", f"{steps['all']:,} in all{epochs}, of {steps['examples']:,} examples each"
    fits = "it fits" if run["fits"] else "it does NOT fit"
    where = f"{run['machine_memory_gb']:.0f} GB of one {run['machine']}: {fits}"
    yield "memory", f"about {max(run['memory_gb'], 0.1):.1f} GB at the peak, of {where}"
    known = run["hours"] is not None
    yield "time", f"about {_time(run['hours'])}: {_shares([run])}" if known else "not known: the data were not loaded"


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """What is below `run_rows`: what needs less if the run does not fit, and what the numbers are."""
    if not run["fits"]:
        yield LESS
    yield f"{ESTIMATES}. Nothing was trained."


def _shares(rows: Rows) -> str:
    """The parts of the time that are worth naming, the largest first."""
    names = dict.fromkeys(name for row in rows for name in row["hours_of"])
    sums = {name: sum(row["hours_of"].get(name, 0.0) for row in rows) for name in names}
    whole = sum(sums.values()) or 1.0
    parts = sorted(((100 * value / whole, name) for name, value in sums.items()), reverse=True)
    return ", ".join(f"{share:.0f}% {name}" for share, name in parts if share >= 0.5)


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours < 1:
        return f"{max(60 * hours, 1):.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"
