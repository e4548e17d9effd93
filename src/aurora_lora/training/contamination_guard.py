"""What a local model has been trained on before: a model that has learned a test's questions must not be tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from ..tasks import TASKS
from .kinds.base import TrainedWith
from .recipe import Recipe

MERGE_NOTE = "aurora_merge.json"
"""In a merged model: what it was merged from, what it was trained on, and the sizes of its files."""


def merge_note(folder: Path) -> dict[str, Any] | None:
    """The note that `aurora merge` left in a folder, if it did."""
    try:
        note = read_json(folder / MERGE_NOTE)
    except (OSError, ValueError):
        return None
    is_note = isinstance(note, dict) and {"source", "files"} <= note.keys() and isinstance(note["files"], dict)
    return note if is_note else None


def noted_training(folder: Path) -> TrainedWith:
    """What the model that was merged into a folder was trained with, as far as its note tells."""
    noted = (merge_note(folder) or {}).get("trained_with")
    noted = noted if isinstance(noted, dict) else {}
    max_length, prompt = noted.get("max_length"), noted.get("prompt")
    return TrainedWith(
        max_length if isinstance(max_length, int) and max_length > 0 else None,
        prompt if prompt in ("cloze", "instruction") else None,
    )


def noted_columns(folder: Path) -> dict[str, tuple[str, ...]]:
    """As `TrainedRun.columns`, of the run that was merged into a folder: the `format` of its conversations."""
    form = (merge_note(folder) or {}).get("format")
    return {"format": (form,)} if isinstance(form, str) else {}


def trained_on(recipe: Recipe) -> list[str]:
    """The tasks that a model trained by a recipe has seen, those of its base model first."""
    earlier = (merge_note(Path(recipe.model).expanduser()) or {}).get("trained_on", [])
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
