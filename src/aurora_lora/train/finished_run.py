"""A finished run: `result.json`, what it can be asked for, and its scores as tables for people."""

from __future__ import annotations

import html
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import files
from ..data import TASKS, Task
from ..data.dreambooth import DREAMBOOTH
from ..data.metrics import Metric, chance_levels, in_order, metric_named
from ..data.own.kinds import OWN
from ..deploy.report import as_text
from ..errors import ArgumentError, FormError, UserError, counted
from ..field_errors import validated
from ..forms import FORMS, MERGED, form_named
from ..methods import ParameterCounts
from ..text_table import TextTable
from ..tuner.peft_names import CONFIG_NAME
from . import recipe_files
from .data import data_format
from .kind_facts import TrainedWith
from .publish import ADAPTER, DATA, LOGS, LORA, MISTAKES, RECIPE, REFERENCE, RESULT, SPLITS, check_adapter
from .recipe import CHANGE_NOTHING, Precision, Recipe, RunRecipe, flatten, own_source, task_name, validate
from .result_schema import RunResult, StudyRun

MERGE_NOTE = "aurora_merge.json"
"""The file in a merged model: what it was trained on, and the files that are its own."""
SCHEMA = 1
MOST_LONG = 3
"""Metrics whose titles, written out, have room beside each other in a table."""

Result = dict[str, Any]
Scores = dict[str, dict[str, float]]
"""Metrics by form."""
Levels = Mapping[str, Mapping[str, float]]
"""Metrics by test set of what takes no model."""


def build_result(
    recipe: RunRecipe,
    *,
    model_commit: str | None,
    metric: str,
    split: str,
    examples: Mapping[str, int],
    test: Mapping[str, Scores],
    validation: Scores,
    selected_by: Mapping[str, Any],
    params: ParameterCounts,
    train_s: float,
    trained_examples: int,
    peak_mb: float,
    processes: int,
    epochs: list[dict[str, Any]],
    labels: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    chance: Levels | None = None,
    most_frequent: Levels | None = None,
    before: Mapping[str, float] | None = None,
    **more: Any,
) -> Result:
    """The contents of result.json, in which these stand by their names (docs/recipe.md): `test` has the metrics of each
    form on each test set, `split` says whether the scores are of these or of `validation`; `train_s` seconds of steps,
    added up over interruptions, in which `trained_examples` were seen; `peak_mb` MiB of one process; `more` what only
    some runs have."""
    return {
        "schema": SCHEMA,
        "recipe": recipe.resolved(),
        "method": recipe.method.name,
        "model": recipe.model,
        "task": recipe.task_title,
        "seed": recipe.seed,
        "metric": {
            "name": metric,
            "split": split,
            "examples": dict(examples),
            "by_form": files.finite_or_none(mean_scores(test)),
            **({} if set(test) == {split} else {"by_test_set": files.finite_or_none(test)}),
            **({"chance": dict(chance)} if chance and all(chance.values()) else {}),
            **({"most_frequent": dict(most_frequent)} if most_frequent and all(most_frequent.values()) else {}),
            **({"before": files.finite_or_none(before)} if before else {}),
            "validation_by_form": files.finite_or_none(validation),
            "selected_by": dict(selected_by),
        },
        **({"labels": list(labels)} if labels else {}),
        **({"data": dict(data)} if data is not None else {}),
        "params": asdict(params),
        "time": {"train_s": round(train_s, 3), "samples_per_s": round(trained_examples / max(train_s, 1e-9), 2)},
        "memory": {"peak_mb": round(peak_mb, 1)},
        "epochs": epochs,
        **files.finite_or_none(more),
        "versions": versions(),
        "git_commit": git_commit(),
        "model_commit": model_commit,
        "device": device(),
        "processes": processes,
        "status": "finished",
    }


def test_sets(result: Result) -> tuple[str, ...]:
    """The test sets that a result has scores of; none where the recipe knows of none."""
    return tuple(result["metric"].get("by_test_set") or result["recipe"]["task"].get("test_sets") or ())


def mean_scores(test: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Scores:
    """Metrics by form: the mean over the test sets, each counting the same; NaN where one is None."""
    sets = list(test.values())

    def mean(form: str, name: str) -> float:
        values = [scores[form][name] for scores in sets]
        return sum(math.nan if value is None else value for value in values) / len(sets)

    return {form: {name: mean(form, name) for name in metrics} for form, metrics in sets[0].items()}


def validation_score(result: Mapping[str, Any], metric: str | None = None) -> float | None:
    """A validation score of the epoch that was chosen: that by which it was if `metric` is None; None if not known."""
    chosen = result["metric"]["selected_by"]
    if metric is None or metric == (chosen.get("name") or result["metric"]["name"]):
        value: float | None = chosen.get("value")
        return value
    of_epoch = [entry["validation"] for entry in result["epochs"] if entry["epoch"] == chosen.get("epoch")]
    return of_epoch[0].get(metric) if of_epoch else None


def chance_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of uniform guessing, the mean over the test sets; those that the result has scores of."""
    scored = {name for scores in result["metric"]["by_form"].values() for name in scores}
    return {name: value for name, value in _mean_level(result, "chance").items() if name in scored}


def _mean_level(result: Mapping[str, Any], of: str) -> dict[str, float]:
    levels = list(result["metric"].get(of, {}).values())
    return {name: sum(one[name] for one in levels) / len(levels) for name in levels[0]} if levels else {}


def task_chance(name: str) -> dict[str, float]:
    """The metrics of uniform guessing on a task whose examples have all as many answers; empty for others."""
    task = TASKS.get(name)
    return {} if task is None or task.num_labels < 2 else chance_levels([task.num_labels])


def read_result(folder: Path | str) -> Result | None:
    """The result of a finished run, or None; raises a UserError where the file is none that this version can read."""
    path = Path(folder) / RESULT
    if not path.exists():
        return None
    with files.reading(path):
        return check_result(files.parse_json(path.read_text(encoding="utf-8"), finite=True), str(path))


def check_result(value: Any, where: str, kind: type[StudyRun] = RunResult) -> Result:
    """The value that a file holds; raises a UserError, which names the field, where it is no result of a run that this
    version can read."""
    if not isinstance(value, dict) or "schema" not in value:
        raise UserError(f"{where} is not a result of aurora train")
    if value["schema"] != SCHEMA:
        raise UserError(f"{where} has schema {value['schema']}, this version reads schema {SCHEMA}")
    try:
        validated(kind, value, f"{where} is damaged")
    except UserError as error:
        raise UserError(str(error).splitlines()[0]) from error
    return value


def epochs_from_log(history: list[dict[str, Any]], metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """One entry for each evaluation in Transformers' log: epoch, step, mean training loss since the last, metrics."""
    entries: list[dict[str, Any]] = []
    total, steps, last = 0.0, 0, 0
    for record in history:
        found = {name: record[f"eval_{name}"] for name in metrics if f"eval_{name}" in record}
        if "loss" in record:  # the mean over the steps since the one before
            step = record.get("step", last + 1)
            total, steps, last = total + record["loss"] * (step - last), steps + step - last, step
        elif found:
            train_loss = total / steps if steps else None
            entries.append(
                {"epoch": record["epoch"], "step": record["step"], "train_loss": train_loss, "validation": found}
            )
            total, steps = 0.0, 0
    return files.finite_or_none(entries)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- what it was computed with


def versions() -> dict[str, str | None]:
    """Versions of everything that has a say in the numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("aurora-lora", "torch", "transformers", "peft", "accelerate", "datasets", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with `-dirty` after changes; None when installed."""
    git, here = ["git", "-C", str(Path(__file__).parent)], Path(__file__).name
    try:
        for command in (["ls-files", "--error-unmatch", here], ["describe", "--always", "--dirty", "--abbrev=40"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def device() -> str:
    """What the run was computed on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


# ---------------------------------------------------------------- for people


def examples_scored(result: Result) -> str:
    """How many examples the scores of a result are over, and of which split, for people."""
    metric, sets = result["metric"], test_sets(result)
    if len(sets) > 1:
        return f"mean of {len(sets)} test sets"
    if metric["split"] in metric["examples"] and "by_test_set" not in metric:
        return counted(metric["examples"][metric["split"]], metric["split"] + " example")
    return f"{counted(metric['examples'][sets[0]], 'example')} of {sets[0]}"


def chance_row(chance: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    """The row of uniform guessing, or of a constant for numbers, in a table of these metrics."""
    return _row("the training mean" if "mse" in chance else "uniform guessing", chance, metrics)


def rows_without_model(result: Mapping[str, Any], metrics: Sequence[Metric]) -> list[list[str]]:
    """The rows of what takes no model in a table of these metrics: guessing, and always the most frequent class."""
    chance, always = chance_of(result), _mean_level(result, "most_frequent")
    rows = [chance_row(chance, metrics)] if chance else []
    return [*rows, *([_row("the most frequent class", always, metrics)] if always else [])]


def _row(name: str, scores: Mapping[str, float], metrics: Iterable[Metric]) -> list[str]:
    return [name, *(one.shown(scores[one.name]) if one.name in scores else "" for one in metrics)]


def score_table(method: str, scores: Scores, deployed: str | None) -> TextTable:
    """The scores of a method's forms, a row for each, which starts with the form's name; a method of a single form has
    the method's name there. The `deployed` form is marked, if there are several."""
    metrics = in_order(next(iter(scores.values())))
    rows: list[Sequence[str]] = []
    for form, values in scores.items():
        name = FORMS[form].title if form in FORMS else method.replace("-", " ") if form == MERGED else form
        rows.append(_row(f"{name}, deployed" if form == deployed and len(scores) > 1 else name, values, metrics))
    headings = [metric.heading if len(metrics) <= MOST_LONG else metric.column for metric in metrics]
    return TextTable("", ["form", *headings], rows)


def scores_of(result: Result) -> TextTable:
    """The scores of a run: of the base model before the training, where it was scored, and of every form."""
    table = score_table(result["method"], result["metric"]["by_form"], result["metric"]["selected_by"]["form"])
    if (before := result["metric"].get("before")) is not None:
        table.rows.insert(0, _row("before the training", before, in_order(before)))
    return table


def run_table(result: Result, reference: Result | None) -> TextTable:
    """The scores of a run beside those of its reference and of what takes no model."""
    table = scores_of(result)
    if reference is not None:
        table.rows.extend(score_table(reference["method"], reference["metric"]["by_form"], None).rows)
    table.rows.extend(rows_without_model(result, in_order(next(iter(result["metric"]["by_form"].values())))))
    return table


def print_run(console: Console, run: FinishedRun) -> None:
    """What came out of a run: scores of every form beside the reference, answers, parameter counts, how it was trained;
    and the files that it left behind."""
    result = run.result
    console.print(replace(run_table(result, run.reference), title=f"{result['task']}: {examples_scored(result)}"))
    by_test_set = result["metric"].get("by_test_set", {})
    if len(by_test_set) > 1:
        metric = metric_named(result["metric"]["name"])
        forms = list(next(iter(by_test_set.values())))
        headers = ["test set", "examples", *(form.replace(MERGED, result["method"]) for form in forms)]
        table = TextTable(metric.heading, headers)
        for name, scores in by_test_set.items():
            cells = [metric.shown(scores[form][metric.name]) for form in forms]
            table.rows.append([name, f"{result['metric']['examples'][name]:,}", *cells])
        console.print(table)
    lines = [parameters(result)]
    chosen, took = result["metric"]["selected_by"], result["time"]
    lines.append(
        f"best epoch {chosen['epoch']:g} of {result['epochs'][-1]['epoch']:g}, by validation {chosen['name']}; "
        f"{took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} examples/s"
    )
    for line in lines:
        console.print(line, highlight=False)
    for path in run.written:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    if (level := not_better_than(result)) is not None:
        console.print(f"no better than {level}: {TRY}", highlight=False)


TRY = "try more training.epochs, half or twice the training.learning_rate, or more rows"


def not_better_than(result: Result) -> str | None:
    """What takes no training and scores at least as well as the deployed form, with its score; None where nothing
    does. Compared by the metric of the result, or by the error of numbers, of which a constant has no correlation."""
    metric, scores = result["metric"], result["metric"]["by_form"][result["metric"]["selected_by"]["form"]]
    chance = chance_of(result)
    levels = {
        "always the most frequent class": _mean_level(result, "most_frequent"),
        "the training mean" if "mse" in chance else "uniform guessing": chance,
        "the model before the training": metric.get("before") or {},
        "no label at all": {"micro_f1": 0.0},
    }
    for title, level in levels.items():
        known = next((metric_named(one) for one in (metric["name"], "mse") if one in level), None)
        score = None if known is None else scores.get(known.name)
        if known is not None and score is not None and known.sign * (score - level[known.name]) <= 0:
            return f"{title} ({known.heading} {known.shown(level[known.name])})"
    return None


def parameters(result: Result) -> str:
    """A line about what was trained."""
    params = result["params"]
    share = 100 * params["adapter"] / params["total"]
    return f"parameters: adapter {params['adapter']:,} ({share:.3g}% of {params['total']:,}), head {params['head']:,}"


def rate(value: float) -> str:
    """A number a second, for people: of a large model on a CPU it is below 1."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


# ---------------------------------------------------------------- the run


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
        title = f"{self.result['task']}, {self.result['model']}: {examples_scored(self.result)}"
        table: Any = replace(run_table(self.result, self.reference), title=title)
        return as_text([table])

    def _repr_html_(self) -> str:
        """The scores of every form, for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

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
        names = (RECIPE, DATA, SPLITS, ADAPTER, LORA, LOGS, MISTAKES, RESULT, REFERENCE)
        return [self.folder / name for name in names if (self.folder / name).exists()]


@dataclass(frozen=True)
class TrainedRun(FinishedRun):
    """A finished run of a classifier or a language model: what `train` and `load_run` give."""

    recipe: Recipe = field(repr=False)

    @property
    def subject(self) -> str:
        """Task and model, for titles."""
        return f"{self.recipe.task.name}, {self.recipe.model}"

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
        named = own_source(OWN["chat"], dict(self.recipe.task))[1]
        return {} if form is None else {**{one: names for one, names in named.items() if names}, "format": (form,)}

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
    """A run, or the one in a folder; the errors are those of `load_run`, or a TypeError where it is neither."""
    return run if isinstance(run, TrainedRun) else load_run(run)


PLACES = (
    *("model", "model.name", "model.revision", "method.from"),
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
    files.check_links(folder)
    result = read_result(folder)
    if result is None or not (folder / ADAPTER).is_dir():
        raise UserError(
            f"the run in {folder} is not finished: the `aurora train` command that began it goes on with it"
        )
    if (digests := result.get("adapter_sha256")) is not None:
        check_adapter(folder / ADAPTER, digests)
    return folder, recipe_files.read(folder / RECIPE), result


# ---------------------------------------------------------------- what a merged model says of its run


def merge_note(folder: Path) -> dict[str, Any]:
    """The note that `aurora merge` left in a folder; empty if it did not."""
    try:
        note = files.read_json(folder / MERGE_NOTE)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and isinstance(note.get("files"), list) else {}
