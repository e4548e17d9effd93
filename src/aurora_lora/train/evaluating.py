"""A finished run scored again, or on new examples: `aurora evaluate`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data import SplitSizes
from ..data.own.kinds import OWN
from ..data.own.source import open_data, open_given
from ..errors import ArgumentError, UserError
from .build import make_trainer
from .data import check_record, cut_notes
from .finished_run import TrainedRun, as_run
from .publish import ADAPTER
from .recipe import either, own_source
from .results import Scores, mean_scores
from .run import score

TEST = "test"
"""What the new examples are to the task."""


def evaluate(
    run: TrainedRun | Path | str,
    *,
    forms: Sequence[str] | str | None = None,
    split: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Scores:
    """The metrics of a finished run, scored again.

    Args:
        run: which, or its folder.
        forms: which forms of it, or which one; all if None.
        split: `"train"`, `"validation"` or a test set; None is what the result reports: the mean over its test sets.
        callbacks: further Trainer callbacks, such as a progress bar.

    Returns:
        The metrics of each form, by name.

    Raises:
        FormError: the run has no such form.
        UserError: no such split, or no form; the run, its data or its adapter cannot be read.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    forms = run.chosen_forms(forms)
    if split is not None:
        run.check_split(split)
    with tempfile.TemporaryDirectory() as nowhere:  # nothing is written, but Transformers wants a folder
        trainer, data = make_trainer(run.recipe, Path(nowhere), callbacks, run.folder / ADAPTER)
        splits = run.test_sets if split is None else (split,)
        return mean_scores({name: score(run.recipe, trainer, data, name, forms) for name in splits})


@dataclass(frozen=True)
class FileScores:
    """The scores of a run on a file, and what is to be known of them.

    Args:
        name: of the file or folder, with its split where it has several.
        rows: of it.
        in_training: how many of them are examples of the run's training split; None where that is not known.
        examples: scored; of conversations, those without an answer within `task.max_length` are left out.
        by_form: the metrics of each form.
        notes: for people, a line each.
    """

    name: str
    rows: int
    in_training: int | None
    examples: int
    by_form: Scores
    notes: tuple[str, ...]


def evaluate_file(
    run: TrainedRun | Path | str,
    data: Path | str,
    *,
    forms: Sequence[str] | str | None = None,
    encoding: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FileScores:
    """The scores of a finished run of the user's own data on new examples.

    They are read with the columns, classes and `max_length` of the run, and scored in the units of its labels. Nothing
    is written, and the run's own data need not be there.

    Args:
        run: which, or its folder.
        data: what `task.test_data` may be: a file, a folder, or a data set of the hub.
        forms: which forms of it, or which one; all if None.
        encoding: of a text file; None is that of the data that the run was trained on.
        callbacks: further Trainer callbacks, such as a progress bar.

    Raises:
        FormError: the run has no such form.
        ArgumentError: the run is of no data of the user's own, or the data cannot be read.
        UserError: a column is missing, a row cannot be used, or its label is none of the run's; or the model or the
            adapter cannot be read.
        TypeError: `run` is neither a run nor a path.
    """
    run, data = as_run(run), str(data)
    forms = run.chosen_forms(forms)
    section = run.recipe.task
    kind = OWN.get(section.name)
    if kind is None:
        raise ArgumentError(
            f"`data`: the run in {run.folder} is of {section.name}, whose examples come with the package or from the "
            f"hub: only runs of your own data ({either(OWN)}) are scored on a file"
        )
    own, columns = own_source(kind, dict(section))
    own = own if encoding is None else replace(own, encoding=encoding)
    columns |= {name: given for name, given in run.columns.items() if name == "format"}
    prompt: dict[str, Any] = {"form": section.prompt} if section.prompt else {}
    ready = kind.prepare(open_given(data, own, TEST), columns, run.labels, **prompt)
    piece = ready.pieces[TEST]
    keys = ready.keys(piece)
    in_training, note = _in_training(run, keys)
    task = {"data": data, "validation_data": None, "test_data": None, "test_size": None}
    recipe = run.recipe.model_copy(update={"task": section.model_copy(update=task)})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, loaded = make_trainer(recipe, Path(nowhere), callbacks, run.folder / ADAPTER, ready.whole(TEST))
        scores = score(recipe, trainer, loaded, TEST, forms)
    notes = (*cut_notes(loaded.record or {}), note)
    return FileScores(piece.name, len(keys), in_training, len(loaded.splits[TEST]), scores, notes)


def _in_training(run: TrainedRun, keys: Sequence[bytes]) -> tuple[int | None, str]:
    """How many of the examples the run was trained on, and that as a line; None where its data cannot tell."""
    section = run.recipe.task
    kind = OWN[section.name]
    try:
        own, columns = own_source(kind, dict(section))
        ready = kind.prepare(open_data(own), columns, None)
        sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
        trained, record = ready.keys_of_training(sizes, section.split_seed)
        check_record(run.folder, record)
    except UserError as error:
        return None, f"whether these examples were in the training data is not known: {error}"
    count = sum(one in trained for one in keys)
    return count, f"{count:,} of {len(keys):,} examples were in the training data"
