"""The fields of `result.json`, checked where it is read: a damaged one is named before anything is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ..data.dreambooth import DREAMBOOTH
from ..field_errors import Section
from .recipe import BoundMethod, Recipe, below, task_name

Score = Annotated[float, Field(allow_inf_nan=False)] | None
"""None stands for what is not finite."""
Amount = Annotated[float, Field(ge=0, lt=2**53)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Values = Annotated[dict[str, Score], Field(min_length=1)]
Scores = Annotated[dict[str, Values], Field(min_length=1)]
"""Metrics by form."""
Levels = dict[str, dict[str, Annotated[float, Field(allow_inf_nan=False)]]]
"""Metrics by test set, of what takes no model."""


class SelectedBy(Section):
    """The validation score by which the best epoch was chosen."""

    split: str
    form: str
    name: str
    value: Score
    epoch: Amount


class MetricFields(Section):
    """The scores, and what they are of."""

    name: str
    split: str
    examples: dict[str, Count] = Field(default_factory=dict)
    by_form: Scores
    by_test_set: dict[str, Scores] = Field(default_factory=dict)
    chance: Levels = Field(default_factory=dict)
    most_frequent: Levels = Field(default_factory=dict)
    before: Values | None = None
    validation_by_form: Scores | None = None
    selected_by: SelectedBy

    @model_validator(mode="after")
    def _fit_together(self) -> MetricFields:
        forms = {form: scores.keys() for form, scores in self.by_form.items()}
        if self.selected_by.form not in forms:
            raise below(f"selected_by.form: {self.selected_by.form!r} has no scores")
        if self.name not in forms[self.selected_by.form]:
            raise below(f"name: {self.name!r} is none of the scores")
        for name, scores in self.by_test_set.items():
            if {form: scores[form].keys() for form in scores} != forms:
                raise below(f"by_test_set.{name}: it must have the forms and metrics of by_form")
        for level in ("chance", "most_frequent"):
            names = [scores.keys() for scores in getattr(self, level).values()]
            if any(own != names[0] for own in names):
                raise below(f"{level}: it must have the same metrics for all test sets")
        return self


class ClassScores(Section):
    """How well a class is told."""

    precision: Amount
    recall: Amount
    f1: Amount
    examples: Count


class Mistake(Section):
    """An example with another answer than its label."""

    example: str
    label: str
    answer: str
    probability: Amount


class Mistakes(Section):
    """What `mistakes.json` holds."""

    split: str
    wrong: Count
    examples: list[Mistake]


class Parameters(Section):
    """What was trained, of how much."""

    adapter: Count
    head: Count
    total: Annotated[Count, Field(gt=0)]


class Time(Section):
    """What the training took."""

    train_s: Amount
    samples_per_s: Amount


class Memory(Section):
    """What the training needed."""

    peak_mb: Amount


class EvaluationOfStudy(Section):
    """What was known after a part of the training."""

    epoch: Annotated[Amount, Field(lt=2**31)]
    step: Count | None = None
    train_loss: Score = None
    validation: dict[str, Score]


class Evaluation(EvaluationOfStudy):
    """What was known at a step of the training."""

    step: Count


Plain = str | int | float | None


class Cut(Section):
    """How many texts of each split were cut at the end, of those that were looked at."""

    max_length: Count | None
    texts: dict[str, list[Count]]


class Standardised(Section):
    """How numbers were learned."""

    mean: float
    deviation: float
    trained: str


class DataFields(Section):
    """What data of the user's own was; more may be said by a kind of data."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain | list[Plain] | dict[str, Plain]]
    files: dict[str, str] = Field(default_factory=dict)
    examples: dict[str, Count] = Field(default_factory=dict)
    classes: dict[str, Count] = Field(default_factory=dict)
    rows: Count = 0
    repeated: Count = 0
    left_out: Count = 0
    unused: Count = 0
    skipped: Count = 0
    format: str | None = None
    cut: Cut | None = None
    labels: Standardised | None = None


class SubjectRecipeFields(Section):
    """The part of a recipe of subject-driven generation that reports look at."""

    model_config = ConfigDict(extra="allow")
    name: str
    task: dict[str, Any]
    method: BoundMethod
    training: dict[str, Any]


def _kind(recipe: Any) -> str:
    return "subject" if task_name(recipe) == DREAMBOOTH.name else "run"


AnyRecipe = Annotated[
    Annotated[SubjectRecipeFields, Tag("subject")] | Annotated[Recipe, Tag("run")], Discriminator(_kind)
]


class StudyRun(Section):
    """The result of a run in the file of a study, which leaves out what it ran on."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    recipe: AnyRecipe
    method: str
    model: str
    task: str
    seed: Count
    metric: MetricFields
    labels: list[str] | None = None
    data: DataFields | None = None
    params: Parameters
    time: Time
    memory: Memory
    epochs: Annotated[list[EvaluationOfStudy], Field(min_length=1)]
    versions: dict[str, str | None] | None = None
    git_commit: str | None = None
    model_commit: str | None = None
    device: str | None = None
    processes: Annotated[Count, Field(gt=0)] = 1
    status: Literal["finished"]
    adapter_sha256: dict[str, str] = Field(default_factory=dict)
    lora_sha256: dict[str, str] = Field(default_factory=dict)


class RunResult(StudyRun):
    """The result in the folder of a run."""

    versions: dict[str, str | None]
    epochs: Annotated[list[Evaluation], Field(min_length=1)]  # type: ignore[assignment]
    git_commit: str | None
    model_commit: str | None
    device: str
    processes: Annotated[Count, Field(gt=0)]
    by_class: dict[str, ClassScores] = Field(default_factory=dict)
    confusion: dict[str, dict[str, Count]] = Field(default_factory=dict)
    losses: dict[Annotated[str, Field(pattern=r"^\d+$")], Score] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_how_many(self) -> RunResult:
        scored = self.metric.by_test_set or [self.metric.split]
        if unknown := [name for name in scored if name not in self.metric.examples]:
            raise below(f"metric.examples: it must say how many there are of {unknown[0]}")
        return self
