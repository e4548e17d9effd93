"""Which changes to a recipe make it fit a machine: those that leave what is trained, and its step, as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UserError
from ...train.recipe import Recipe, RunRecipe, Step, override
from . import shapes
from .architectures import is_stored_quantised
from .estimate import PEAKS, Estimate, estimate, evaluation_memory
from .machines import Machine
from .recipe_kinds import as_recipe
from .text_lengths import Sizes


@dataclass(frozen=True)
class Fitting:
    """Changes to a recipe, and what it needs with them.

    Args:
        overrides: `key=value`, as the command takes them.
        needs: with all of them.
        fits: whether the machine has that.
    """

    overrides: tuple[str, ...]
    needs: Estimate
    fits: bool


def fitting(recipe: RunRecipe, machine: Machine, sizes: Sizes | None = None) -> Fitting | None:
    """The first of `changes` that fits; where none does, the one that needs least; None where nothing can be changed.

    Where an evaluation takes most, smaller batches in evaluations are tried, too: as those of training, and of one.

    Args:
        recipe: that does not fit.
        machine: that it is planned for.
        sizes: of its data, where these are loaded.

    Raises:
        UserError: as `estimate`.
    """
    least = None
    for overrides, changed in _changed(recipe, machine, sizes):
        needs = estimate(changed, machine, sizes)
        if machine.fits(needs.memory_gb):
            return Fitting(overrides, needs, True)
        if least is None or needs.memory_gb < least.needs.memory_gb:
            least = Fitting(overrides, needs, False)
    return least


def _changed(recipe: RunRecipe, machine: Machine, sizes: Sizes | None) -> Iterator[tuple[tuple[str, ...], RunRecipe]]:
    """What is tried, and the recipe with it."""
    for overrides in ((), *changes(recipe, machine)):
        try:
            changed = _with(recipe, overrides)
        except UserError:  # not every method trains on 4 bits
            continue
        if overrides:
            yield overrides, changed
        if isinstance(changed, Recipe) and _evaluation_takes_most(changed, sizes):
            for size in dict.fromkeys((changed.training.batch_size, 1)):
                if size < changed.training.eval_batch_size:
                    more = (*overrides, f"training.eval_batch_size={size}")
                    yield more, _with(recipe, more)


def _evaluation_takes_most(recipe: Recipe, sizes: Sizes | None) -> bool:
    return max(PEAKS, key=lambda peak: peak(recipe, sizes)) is evaluation_memory


def _with(recipe: RunRecipe, overrides: tuple[str, ...]) -> RunRecipe:
    return as_recipe(override(recipe.resolved(), overrides, (("", type(recipe)),)), recipe.name)


def changes(recipe: RunRecipe, machine: Machine) -> Iterator[tuple[str, ...]]:
    """What to try, one after the other: 16 bits, then checkpointing, then smaller batches; all of it on 4 bits then."""
    training = recipe.training
    given: tuple[str, ...] = ()
    if training.precision == "fp32":
        given = (f"training.precision={machine.half_precision}",)
        yield given
    if not training.gradient_checkpointing and _can_checkpoint(recipe):
        given = (*given, "training.gradient_checkpointing=true")
        yield given
    for quantised in ((), ("model.quantization=nf4",)) if _can_be_quantised(recipe) else ((),):
        if quantised:
            yield (*given, *quantised)
        for batch in smaller_batches(training):
            yield (*given, *quantised, *batch)


def smaller_batches(training: Step) -> Iterator[tuple[str, str]]:
    """Halved batches with twice the accumulation, down to 1: as many examples in a step."""
    size, accumulation = training.batch_size, training.gradient_accumulation_steps
    while size > 1:
        parts = 2 if size % 2 == 0 else size
        size, accumulation = size // parts, accumulation * parts
        yield f"training.batch_size={size}", f"training.gradient_accumulation_steps={accumulation}"


def _can_checkpoint(recipe: RunRecipe) -> bool:
    return not isinstance(recipe, Recipe) or bool(shapes.pretrained(recipe).supports_gradient_checkpointing)


def _can_be_quantised(recipe: RunRecipe) -> bool:
    if not isinstance(recipe, Recipe) or recipe.base.quantization is not None:
        return False
    return not is_stored_quantised(recipe.base)
