"""The note that `aurora merge` leaves in a merged model: what it was made from, and what later commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from .kind_facts import TrainedWith

MERGE_NOTE = "aurora_merge.json"
"""The file in a merged model: what it was merged from, what it was trained on, and the sizes of its files."""


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
    max_length, prompt, task = noted.get("max_length"), noted.get("prompt"), noted.get("task")
    return TrainedWith(
        max_length if isinstance(max_length, int) and max_length > 0 else None,
        prompt if prompt in ("cloze", "instruction") else None,
        task if isinstance(task, str) else None,
    )


def noted_columns(folder: Path) -> dict[str, tuple[str, ...]]:
    """The `TrainedRun.columns` of the run that was merged into a folder: the `format` of its conversations."""
    form = (merge_note(folder) or {}).get("format")
    return {"format": (form,)} if isinstance(form, str) else {}


def write_merge_note(
    folder: Path,
    source: Mapping[str, Any],
    *,
    kind: str,
    trained_on: Sequence[str],
    trained_with: TrainedWith,
    data_format: str | None,
) -> None:
    """Leave the note in a folder that holds the whole merged model by now.

    Args:
        folder: of the model.
        source: the adapter's digests, the form, and what else would make another merge of it.
        kind: of the run's task.
        trained_on: the tasks that the model has seen.
        trained_with: see `noted_training`.
        data_format: see `noted_columns`.
    """
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    note = {
        "source": source,
        "kind": kind,
        "trained_on": trained_on,
        "trained_with": asdict(trained_with),
        "format": data_format,
        "files": sizes,
    }
    write_json(folder / MERGE_NOTE, note)
