"""What a local model has been trained on before: a model that has learned a test's questions must not be tested."""

from __future__ import annotations

from ..data import TASKS
from ..errors import UserError
from ..files import expanded
from .merge_note import merge_note
from .recipe import Recipe


def trained_on(recipe: Recipe) -> list[str]:
    """The tasks that a model trained by a recipe has seen, those of its base model first."""
    earlier = (merge_note(expanded(recipe.model)) or {}).get("trained_on", [])
    return list(dict.fromkeys([*earlier, recipe.task_title]))


def check_contamination(recipe: Recipe) -> None:
    """Raise a UserError if the recipe's model was trained on a task that the recipe's must not be mixed with."""
    *earlier, task = trained_on(recipe)
    for before in earlier:
        if task in TASKS and before in TASKS[task].never_after:
            raise UserError(
                f"model: {recipe.model} was trained on {before}, which holds examples that {task} trains on or tests "
                "with: its scores would mean nothing; start from another model"
            )
