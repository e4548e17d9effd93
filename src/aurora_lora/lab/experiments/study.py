"""A study: settings to compare at the same tuning budget, in one YAML file.

    name: movie-sentiment
    base:                               # a recipe without its method
      model: minilm-l6
      task: {name: movie-sentiment, train_size: 3000}
    tuning:
      budget: 4                         # runs for each setting
      sampler: grid                     # grid, random or tpe (Optuna's)
      metric: accuracy                  # of the validation scores; of nll less is better
      space: {training.learning_rate: [1e-3, 2e-3, 5e-3, 1e-2]}
    seeds: [0, 1, 2, 3, 4]              # of the chosen runs, on test data
    settings:
      - {name: LoRA r=8, method: {name: lora, r: 8, lora_alpha: 16, target_modules: [query, value]}}
      - {name: AuroRA r=2, method: {name: aurora, r: 2, alpha: 4, target_modules: [query, value]}}
    questions:                          # answered by differences, paired by seed
      - {ask: Does AuroRA r=2 match LoRA r=8, first: AuroRA r=2, second: LoRA r=8, margin: 1}

What is left out has a default.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ...data.metrics import Metric, metric_named
from ...errors import UserError, unknown
from ...field_errors import Section, validated
from ...files import slug
from ...train.recipe import Recipe, Seed, Size, override, validate
from ...train.recipe_files import set_field
from .recipes import find
from .runs_file import RUNS

SUMMARY = "study.json"
"""The file in the folder of a study that is done: what was tried and chosen, and how that scored."""


Value = str | int | float | bool


class Range(Section):
    """A range to draw from, on a linear or logarithmic scale."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high, and above 0 with log")
        return self


def _distinct_values(space: dict[str, Any]) -> dict[str, Any]:
    """Raise an error for a field without values, or with two whose runs would be in one folder and count twice."""
    for field, values in space.items():
        if isinstance(values, tuple):
            folders = [folder_name({field: value}) for value in values]
            again = [place for place, folder in enumerate(folders) if folder in folders[:place]]
            if again or not values:
                why = "give at least one value"
                if again:
                    first, second = values[folders.index(folders[again[0]])], values[again[0]]
                    why = f"the runs of {first!r} and {second!r} would have one folder, {folders[again[0]]}"
                raise PydanticCustomError("below", "{field}: {why}", {"field": field, "why": why})
    return space


Space = Annotated[
    dict[str, Range | Annotated[tuple[Value, ...], Field(strict=False)]], AfterValidator(_distinct_values)
]


class Tuning(Section):
    """How each setting is tuned: on one seed, by a validation score of the form that it deploys."""

    budget: Size
    """Runs for each setting."""
    space: Space
    """Dotted fields of the recipe, each with a list of values, or a range: `{low: 1e-4, high: 1e-2, log: true}`."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Of Optuna. A grid takes lists alone, and the budget is the number of its points."""
    seed: Seed = 0
    """Of the runs, and of the sampler."""
    metric: str | None = None
    """Of the validation scores: what the values are chosen by; `null`: the task's own. The epoch of each run is chosen
    by its `training.select_by`, with which this must be given."""
    each_form: bool = False
    """Whether each form of AuroRA has the values that its own validation scores choose, and not those of the deployed
    form; every distinct choice is run over the seeds."""
    finalists: Size = 1
    """How many of the best values of a setting, and of such a form, are run over all seeds: of several, the best mean
    validation score over the seeds decides. On one seed the second best may be ahead by chance."""

    @model_validator(mode="after")
    def _fits(self) -> Tuning:
        if self.finalists > self.budget:
            raise ValueError(f"finalists={self.finalists} is not allowed: budget={self.budget} values are tried")
        return self


def points(space: Space) -> list[dict[str, Any]]:
    """The first value of every field, and each of the others in its place."""
    samples = {field: _samples(values) for field, values in space.items()}
    first = {field: values[0] for field, values in samples.items()}
    return [first, *({**first, field: value} for field, values in samples.items() for value in values[1:])]


def _samples(values: Range | tuple[Value, ...]) -> tuple[Value, ...]:
    """Every value that may be proposed; of a range its ends and one between them, which no whole number allows."""
    if isinstance(values, tuple):
        return values
    return values.low, values.high, values.low + (values.high - values.low) / math.pi


def point(values: Mapping[str, Any]) -> str:
    """Tuned values in one word: `learning_rate=0.005`; by their whole names where the last parts are the same."""
    ends = [field.rpartition(".")[2] for field in values]
    shown = {
        end if ends.count(end) == 1 else field: value for (field, value), end in zip(values.items(), ends, strict=True)
    }
    return ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )


def folder_name(values: Mapping[str, Any]) -> str:
    """Tuned values as the name of the folder of their runs."""
    return point(values).replace("/", "-") or "as-given"


class Setting(Section):
    """One of the things compared."""

    name: Annotated[str, Field(min_length=1)]
    method: str | dict[str, Any]
    """As in a recipe."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Other fields of the recipe that differ from the base, by dotted name."""
    space: Space | None = None
    """Instead of the study's: full fine-tuning wants other learning rates than an adapter. The budget is the same."""
    why: Annotated[str, Field(min_length=1)] | None = None
    """Why it has a space of its own: reports print it."""

    @model_validator(mode="after")
    def _why_of_a_space(self) -> Setting:
        if (self.why is None) != (self.space is None):
            raise ValueError(
                f"setting {self.name}: the settings of a study are tuned on one grid: a `space` of its own goes with "
                "`why`, which says what this setting needs another for"
            )
        return self

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return slug(self.name) or "setting"


class Side(Section):
    """What is compared: a setting, in one of its forms (the deployed one by default)."""

    setting: str
    form: str | None = None


class Comparison(Section):
    """A question that the study answers by a difference: the first less the second, paired by seed."""

    ask: Annotated[str, Field(min_length=1)]
    """As a page prints it."""
    first: Side
    """A setting by its name, or `{setting: NAME, form: FORM}`; so is the second."""
    second: Side
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Within which the two count as equivalent, as the task's metric is shown: 0.5 is half a point of accuracy.
    `null`: 1 point of a metric in percent, and no such answer by others."""
    same_runs: bool = False
    """Whether both sides, forms of one setting, are scored in the runs that the first side's form chose: what a merge
    of these runs costs. Otherwise each form has the runs of its own choice."""

    @field_validator("first", "second", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"setting": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_one_setting(self) -> Comparison:
        if self.same_runs and self.first.setting != self.second.setting:
            raise ValueError(
                f"same_runs: true is not allowed: '{self.first.setting}' and '{self.second.setting}' are two settings"
            )
        return self


class Study(Section):
    """The whole file."""

    name: Annotated[str, Field(min_length=1)]
    base: dict[str, Any]
    """What all recipes have: any field of a recipe but `method`."""
    tuning: Tuning
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)] = (0, 1, 2, 3, 4)
    split_by_seed: bool = False
    """Whether each seed has its own split of the data, too: `task.split_seed` is the seed."""
    settings: Annotated[tuple[Setting, ...], Field(min_length=1, strict=False)]
    questions: Annotated[tuple[Comparison, ...], Field(strict=False)] = ()

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        return seeds

    @model_validator(mode="after")
    def _known_settings(self) -> Study:
        names = {setting.name for setting in self.settings}
        for side in (side for question in self.questions for side in (question.first, question.second)):
            if side.setting not in names:
                raise ValueError(f"questions: '{side.setting}' is an {unknown('setting', names, side.setting)}")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Study:
        slugs = [setting.slug for setting in self.settings]
        if twice := [setting.name for setting in self.settings if slugs.count(setting.slug) > 1]:
            raise ValueError(f"settings: the names {', '.join(twice)} are not distinct")
        for setting in self.settings if self.tuning.sampler == "grid" else ():
            where, space = f"setting {setting.name}: space", self.space(setting)
            if ranges := [field for field, values in space.items() if isinstance(values, Range)]:
                raise ValueError(f"{where}: {ranges[0]}: a grid needs a list of values, not a range")
            size = math.prod(len(values) for values in space.values() if isinstance(values, tuple))
            if size != self.tuning.budget:
                raise ValueError(f"{where}: budget={self.tuning.budget} is not allowed: the grid has {size} points")
        return self

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return slug(self.name) or "study"

    @property
    def metric(self) -> Metric:
        """What values are chosen by."""
        if self.tuning.metric is not None:
            return metric_named(self.tuning.metric)
        setting = self.settings[0]
        return metric_named(self.recipe(setting, points(self.space(setting))[0], self.seeds[0]).task.definition.metric)

    @property
    def models(self) -> list[str]:
        """What its settings fine-tune."""
        return sorted({recipe.model for setting in self.settings for recipe in self.recipes(setting)})

    def space(self, setting: Setting) -> Space:
        """What is tuned of a setting."""
        return self.tuning.space if setting.space is None else setting.space

    def run_folder(self, setting: Setting, values: Mapping[str, Any], seed: int) -> Path:
        """Where a run of a setting lies in the folder of the study."""
        return Path(RUNS) / setting.slug / folder_name(values) / f"seed{seed}"

    def recipes(self, setting: Setting) -> list[Recipe]:
        """The recipes of the runs that tune a setting, with every value of each field; errors as of `recipe`."""
        return [self.recipe(setting, values, self.tuning.seed) for values in points(self.space(setting))]

    def recipe(self, setting: Setting, chosen: Mapping[str, Any], seed: int) -> Recipe:
        """The recipe of a run of a setting, with the tuned fields as chosen.

        Raises:
            UserError: a field that a recipe does not have, or a value that is not allowed.
        """
        values: dict[str, Any] = copy.deepcopy({"name": self.name, **self.base})
        values["method"] = copy.deepcopy(setting.method)
        for field, value in {**setting.fields, **chosen}.items():
            set_field(values, field, value)
        values["seed"] = seed
        if self.split_by_seed:
            set_field(values, "task.split_seed", seed)
        return validate(values, f"{self.name}, setting {setting.name}")


def load_study(given: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Find and validate a study, by its name or file, and the recipe of every setting of it.

    Args:
        given: a name or a file.
        overrides: as of `load_recipe`, such as `base.task.data=mine.csv`.

    Raises:
        UserError: there is no such study, the file cannot be read, or a value is wrong; one line for each mistake.
    """
    found = find(given, "study")
    path, data = found.source, override(found.values(), overrides)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a study is a mapping of fields: name, base, tuning, seeds, settings")
    study = validated(Study, data, str(path))
    recipes = {setting.name: study.recipes(setting)[0] for setting in study.settings}
    metric = study.tuning.metric
    for setting, recipe in zip(study.settings, recipes.values(), strict=True):
        chosen_by = "training.select_by"
        if metric is None and (recipe.training.select_by is not None or chosen_by in study.space(setting)):
            raise UserError(
                f"{path}: tuning.metric: this field must be given where {chosen_by} is: that chooses the epoch of each "
                "run, this one the values, by a score that all runs have"
            )
        if metric is not None and metric not in (known := recipe.task.kind.validation_metrics(recipe.task.definition)):
            raise UserError(f"{path}: tuning.metric: '{metric}' is an {unknown('metric', known, metric)}")
    for side in (side for question in study.questions for side in (question.first, question.second)):
        method = recipes[side.setting].method
        forms = method.forms
        if side.form is not None and side.form not in forms:
            raise UserError(f"{path}: questions: {side.setting} has no form '{side.form}' (it has {', '.join(forms)})")
    return study
