"""What `aurora train` would do with a recipe: its data loaded and checked as it does, no weights, nothing trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...data.access import check_access
from ...data.models import is_missing
from ...deploy.formats import check_quantization
from ...diffusion.recipe import SubjectRecipe
from ...errors import UserError
from ...train.build import load_data
from ...train.data import Data, notes
from ...train.distributed import check_precision, state
from ...train.kinds import kind_of
from ...train.models import check_positions, longest_text, positions
from ...train.publish import check_recipe
from ...train.recipe import Recipe, RunRecipe, examples_of_a_step, steps_of_an_epoch
from ...train.run import check_contamination
from . import shapes, text_lengths
from .architectures import architecture
from .estimate import Estimate, NotEstimatedError, estimate, record_of, trained_parameters
from .fitting import fitting
from .machines import Machine, here, named
from .text_lengths import Sizes

Say = Callable[[Iterable[str]], None]


def dry_run(
    recipe: RunRecipe, gpu: str | None = None, output: Path | None = None, say: Say = lambda lines: None
) -> dict[str, Any]:
    """What a run will train, whether it fits a machine, and how long it takes.

    Args:
        recipe: of the run.
        gpu: the machine, see `machines.named`; this one if None.
        output: folder of the run, which is looked at alone.
        say: takes the lines about the data that a training begins with.

    Returns:
        `model`, `task`, `method`; what `record_of` says; `examples` of each split and packed `rows`; `texts` (tokens of
        the training texts, and how many were `cut`); `steps`; `fitting`, what would make it fit if it does not.

    Raises:
        UserError: what the training would say of the data, the folder and the method; the GPU is not known.
    """
    machine = here() if gpu is None else named(gpu)
    if isinstance(recipe, Recipe):
        check_contamination(recipe)
    if state().num_processes > 1:
        raise UserError("a dry run plans a run in one process: start it by itself")
    if output is not None:
        check_recipe(output, recipe)
    data = None
    if isinstance(recipe, Recipe):
        if is_missing(recipe.model):  # has no processor of images yet
            say([f"{recipe.model} is pretrained first, and what makes its images is not there yet: no data are loaded"])
        else:
            data = _load(recipe, machine == here())
            say(notes(data.record or {}))
    sizes = None if data is None else Sizes.of(data)
    needs = _needs(recipe, machine, sizes)
    if data is None and machine == here():
        check_precision(recipe.training.precision)
    record = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model,
        "task": recipe.task_title,
        "method": recipe.method.name,
        "budget": recipe.method.options.get("budget"),
        "reference": None,
        **needs,
        **(_of_subject(recipe) if isinstance(recipe, SubjectRecipe) else {}),
        **(_of_data(recipe, data, sizes) if isinstance(recipe, Recipe) else {}),
        "fitting": None,
    }
    if needs["fits"] is False and (found := fitting(recipe, machine, sizes)) is not None:
        record["fitting"] = {"overrides": list(found.overrides), **record_of(found.needs, machine)}
    return record


def _needs(recipe: RunRecipe, machine: Machine, sizes: Sizes | None) -> dict[str, Any]:
    """The record of what a run needs (`record_of`), with null for what is not known, and `why`."""
    try:
        return record_of(estimate(recipe, machine, sizes), machine)
    except NotEstimatedError as error:
        if not isinstance(recipe, Recipe):
            raise
        unknown = record_of(Estimate(trained_parameters(recipe, sizes), 0.0, None), machine)
        return {**unknown, "memory_gb": None, "fits": None, "why": str(error)}


def _load(recipe: Recipe, is_here: bool) -> Data:
    """The data of a recipe, after the checks of what it trains on them."""
    check_access(recipe.model)
    if is_here:
        check_precision(recipe.training.precision)
        if recipe.base.quantization is not None:
            check_quantization(recipe.base.quantization)
    processor = kind_of(recipe.task.definition).processor(recipe.base)
    data = load_data(recipe, processor)
    if (longest := longest_text(recipe.task.max_length, processor)) is not None:
        check_positions(shapes.pretrained(recipe), recipe.model, longest)
    return data


def _of_subject(recipe: SubjectRecipe) -> dict[str, Any]:
    training = recipe.training
    examples = examples_of_a_step(training)
    return {"examples": {}, "texts": None, "steps": {"all": training.steps, "examples": examples}}


def _of_data(recipe: Recipe, data: Data | None, sizes: Sizes | None) -> dict[str, Any]:
    training, record = recipe.training, {} if data is None else data.record or {}
    splits = ("train", "validation", *recipe.test_sets)
    counts = {name: text_lengths.examples(recipe, name, sizes) for name in splits}
    found: dict[str, Any] = {
        "reference": None if recipe.reference is None else recipe.reference.method.name,
        "examples": record.get("examples") or {name: count for name, count in counts.items() if count is not None},
        "texts": None,
        "steps": None,
    }
    if "packed" in record:
        found["rows"] = record["packed"]
    if (rows := counts["train"]) is not None:
        an_epoch = steps_of_an_epoch(training, rows)
        of_a_step = min(examples_of_a_step(training), rows)
        found["steps"] = {"epoch": an_epoch, "all": an_epoch * training.epochs, "examples": of_a_step}
    if data is not None and (lengths := data.lengths.get("train")):
        most = positions(architecture(recipe.base).get_text_config())
        cut, looked_at = record.get("cut", {"texts": {}})["texts"].get("train", (None, len(lengths)))
        found["texts"] = {
            "mean": math.fsum(lengths) / len(lengths),
            "padded": text_lengths.padded(recipe, training.batch_size, most, sizes),
            "longest": text_lengths.longest(recipe, most, sizes),
            "cut": cut,
            "looked_at": looked_at,
            "max_length": record.get("cut", {}).get("max_length", text_lengths.limit(recipe, most)),
        }
    return found
