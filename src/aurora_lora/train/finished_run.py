"""A finished run: its recipe, its result, and what it can be asked for."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data import Task
from ..data.dreambooth import DREAMBOOTH
from ..deploy.report import as_text
from ..errors import ArgumentError, FormError, UserError
from ..files import read_json
from ..forms import form_named
from ..tuner.peft_names import CONFIG_NAME
from . import recipe_files
from .data import data_format
from .kind_facts import TrainedWith
from .publish import ADAPTER, DATA, LOGS, LORA, RECIPE, REFERENCE, RESULT, SPLITS, check_adapter
from .recipe import CHANGE_NOTHING, Precision, Recipe, RunRecipe, flatten, task_name, validate
from .results import Result, examples_scored, print_result, read_result, run_table

MERGE_NOTE = "aurora_merge.json"
"""The file in a merged model: what it was trained on, and the files that are its own."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of any kind; in a notebook or printed, its scores.

    Args:
        folder: of the run.
        recipe: every field as it was used.
        result: what `result.json` holds: the scores of every form, losses, time, memory, versions.
        reference: the result of the recipe's reference, if it has one.
        was_finished: whether it was finished before: then `train` has trained nothing.
    """

    folder: Path
    recipe: RunRecipe = field(repr=False)
    result: Result = field(repr=False)
    reference: Result | None = field(default=None, repr=False)
    was_finished: bool = True

    def __str__(self) -> str:
        """The scores of every form, 80 characters wide."""
        return as_text([self._table()])

    def _repr_html_(self) -> str:
        """The scores of every form, for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def _table(self) -> Any:
        title = f"{self.result['task']}, {self.result['model']}: {examples_scored(self.result)}"
        return replace(run_table(self.result, self.reference), title=title)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that the run can be evaluated in."""
        return self.recipe.method.forms

    @property
    def deployed_form(self) -> str:
        """The form that is deployed unless another is asked for."""
        return self.recipe.method.deployed_form

    def check_form(self, form: str) -> None:
        """Raise a FormError if the run has no such form."""
        if form not in self.forms:
            raise FormError(
                f"form={form!r} is not one of the {self.recipe.method.name} run in {self.folder} "
                f"(allowed: {', '.join(map(repr, self.forms))})"
            )

    def chosen_forms(self, forms: Sequence[str] | str | None) -> tuple[str, ...]:
        """The forms that are meant: several, one, or, by None, all.

        Raises:
            ArgumentError: none are meant.
            FormError: the run has no such form.
        """
        chosen = self.forms if forms is None else tuple(dict.fromkeys([forms] if isinstance(forms, str) else forms))
        if not chosen:
            raise ArgumentError(f"`forms` is empty (allowed: {', '.join(map(repr, self.forms))}, or None for all)")
        for form in chosen:
            self.check_form(form)
        return chosen

    def check_mergeable(self, form: str) -> None:
        """Raise a FormError if the run has no such form, or the form is no update of the weight."""
        self.check_form(form)
        self.recipe.method.check_mergeable()
        if not form_named(form).mergeable:
            others = ", ".join(repr(name) for name in self.forms if form_named(name).mergeable)
            raise FormError(
                f"form={form!r} of the run in {self.folder} is no linear map, and cannot be merged or exported "
                f"({f'allowed: {others}' if others else 'it has no other form'})"
            )

    @property
    def written(self) -> list[Path]:
        """What the run left behind."""
        names = (RECIPE, DATA, SPLITS, ADAPTER, LORA, LOGS, RESULT, REFERENCE)
        return [self.folder / name for name in names if (self.folder / name).exists()]


def print_run(console: Console, run: FinishedRun) -> None:
    """What came out of a run, and the files that it left behind."""
    print_result(console, run.result, run.reference)
    for path in run.written:
        console.print(f"  {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class TrainedRun(FinishedRun):
    """A finished run of a classifier or a language model: what `train` and `load_run` give."""

    recipe: Recipe = field(repr=False)

    @property
    def subject(self) -> str:
        """Task and model, for titles."""
        return f"{self.recipe.task.name}, {self.recipe.model}"

    @property
    def in_float32(self) -> TrainedRun:
        """This run, to be loaded in float32 whatever precision it was trained in."""
        return self.in_precision("fp32")

    def in_precision(self, precision: Precision) -> TrainedRun:
        """This run, to be loaded in another precision than it was trained in."""
        return replace(self, recipe=self.recipe.in_precision(precision))

    @property
    def task(self) -> Task:
        """The task that it was trained on."""
        return self.recipe.task.definition

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of its data, by the field of a recipe's task that names them; of conversations their `format`."""
        own = {name: getattr(self.recipe.task, name) for name in ("text", "question", "options", "image")}
        given = {name: columns for name, columns in own.items() if columns}
        if given or self.task.text_columns:
            return given or {"text": self.task.text_columns}
        form = data_format(self.folder)
        return {} if form is None else {"format": (form,)}

    @property
    def trained_with(self) -> TrainedWith:
        """What the answers to new examples need to know of its recipe."""
        return TrainedWith(self.recipe.task.max_length, self.recipe.task.prompt, self.recipe.task.name)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return tuple(self.result.get("labels", self.task.labels))

    @property
    def test_sets(self) -> tuple[str, ...]:
        """The splits that its result reports."""
        return self.recipe.test_sets or self.task.test_sets

    def check_split(self, split: str) -> None:
        """Raise a UserError if the run's task has no such split."""
        names = tuple(dict.fromkeys(("train", "validation", *self.test_sets)))
        if split not in names:
            raise UserError(f"split '{split}' is not one of {', '.join(names)}")


def load_run(folder: Path | str) -> TrainedRun:
    """A finished run.

    Args:
        folder: of the run.

    Raises:
        UserError: the folder holds none.
    """
    folder, values, result = read_finished(folder)
    if task_name(values) == DREAMBOOTH.name:
        raise UserError(
            f"{folder} is a run of {DREAMBOOTH.name}: its images and scores are in the folder; `aurora export` and "
            "`aurora generate` take it"
        )
    recipe = validate(values, str(folder / RECIPE))
    check_own_recipe(folder, recipe, result)
    return TrainedRun(folder, recipe, result, read_result(folder / REFERENCE) if recipe.reference else None)


def as_run(run: TrainedRun | Path | str) -> TrainedRun:
    """A run, or the one in a folder.

    Raises:
        TypeError: it is neither a run nor a path.
        UserError: the folder holds none.
    """
    if isinstance(run, TrainedRun):
        return run
    if isinstance(run, (str, Path)):
        return load_run(run)
    allowed = "a run, as `train` and `load_run` give it, or its folder"
    raise TypeError(f"run={run!r:.80} is a {type(run).__name__}: it must be {allowed}")


PLACES = (
    *("model", "model.name", "model.revision"),
    *("task.teacher", "task.data", "task.validation_data", "task.test_data", "task.revision"),
    *("vae", "task.images", "scores.clip", "scores.dino"),
)
"""Fields that say where something is, which may have moved; what is read of it, other checks look at."""


def check_own_recipe(folder: Path, recipe: RunRecipe, result: Result) -> None:
    """Raise a UserError if the recipe is not that of the result; what it names may have moved, test sets been added."""
    there, here = (flatten(one) for one in (result["recipe"], recipe.resolved()))
    known = (there.keys() & here.keys()) - {"name", *PLACES, *CHANGE_NOTHING}
    if differing := sorted(field for field in known if there[field] != here[field]):
        raise UserError(f"{folder / RECIPE} is not the recipe of {folder / RESULT}: they differ in {differing[0]}")


def is_subject_run(folder: Path | str) -> bool:
    """Whether a folder holds a run of subject-driven generation, finished or not."""
    path = Path(folder) / RECIPE
    return path.is_file() and task_name(recipe_files.read(path)) == DREAMBOOTH.name


def read_finished(folder: Path | str) -> tuple[Path, Any, Result]:
    """The folder of a finished run, the plain values of its recipe, and its result.

    Raises:
        UserError: the folder holds none.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        hint = "; it holds an adapter: PEFT loads it, and `aurora_lora.merge_gap` measures its merge"
        is_adapter = (folder / CONFIG_NAME).is_file()
        raise UserError(f"{folder} is not the folder of a run: it has no {RECIPE}{hint if is_adapter else ''}")
    result = read_result(folder)
    if result is None or not (folder / ADAPTER).is_dir():
        raise UserError(
            f"the run in {folder} is not finished: the `aurora train` command that began it goes on with it"
        )
    if (digests := result.get("adapter_sha256")) is not None:
        check_adapter(folder, digests)
    return folder, recipe_files.read(folder / RECIPE), result


# ---------------------------------------------------------------- what a merged model says of its run


def merge_note(folder: Path) -> dict[str, Any] | None:
    """The note that `aurora merge` left in a folder, if it did."""
    try:
        note = read_json(folder / MERGE_NOTE)
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and isinstance(note.get("files"), list) else None


def noted(folder: Path) -> tuple[TrainedWith, dict[str, tuple[str, ...]]]:
    """`trained_with` and `columns` of the run that was merged into a folder, as far as its note tells."""
    note = merge_note(folder) or {}
    try:
        trained = TrainedWith(**note.get("trained_with", {}))
    except TypeError:
        trained = TrainedWith()
    form = note.get("format")
    return trained, {"format": (form,)} if isinstance(form, str) else {}
