"""A recipe: everything that decides a training run, in one YAML file, validated once.

    name: demo
    model: minilm-l6                 # a packaged model, a hub id or a local folder
    task: {name: movie-sentiment, train_size: 3000}
    method: {name: aurora, r: 2, target_modules: [query, value]}
    training: {epochs: 3, batch_size: 32, learning_rate: 5e-3}

What is left out has a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from ..data.own.kinds import OWN
from ..data.task import Augment
from ..errors import UserError, unknown
from ..methods.base import Method, PeftMethod
from .kinds import KINDS, Kind, kind_of
from .kinds.distillation import DISTILLATION
from .own_section import OwnFields, check_own, either, own_columns, own_task
from .sections import (
    BoundMethod,
    CalibrationSection,
    ModelSection,
    Names,
    Precision,
    Rate,
    Section,
    Seed,
    Size,
    TrainingSection,
)

if TYPE_CHECKING:
    from ..data import Task

CHANGE_NOTHING = (
    "task.test_sets",
    "task.samples",
    "training.report_to",
    "training.eval_batch_size",
    "training.checkpoint_every",
    "training.workers",
)
"""Fields that may change when a run goes on: what is trained does not depend on them."""


class TaskSection(OwnFields, Section):
    """The data, and how it is split and cut."""

    name: str
    train_size: Size | None = None
    """`null`: all that is left after validation and test."""
    validation_size: Size | None = None
    """`null`: the task's own choice; where the data comes with splits, the whole split."""
    test_size: Size | None = None
    """Of each test set; `null` as for validation."""
    split_seed: Seed = 0
    max_length: Size | None = None
    """Tokens; longer texts are cut. Not for images. `null`: 128; for questions with choices
    256, for conversations 1,024."""
    test_sets: Names | None = None
    """Which of the task's test sets to score; `null`: all."""
    prompt: str | None = None
    """Multiple choice: `instruction`, LLM-Adapters' form, or `cloze`, where the choice goes on with the text.
    `null`: `cloze`; of `commonsense` `instruction`."""
    scorer: Literal["choices", "generated"] | None = None
    """Multiple choice: by the likelihood of the choices, or by what the model writes as well (test sets only), which
    needs `prompt: instruction`. `null`: `choices`."""
    loss_on: Literal["all", "answer"] | None = None
    """Multiple choice and conversations: train on the whole text or on the answers alone. `null`: the whole text of a
    question, the answers of a conversation."""
    chat_template: str | None = None
    """Conversations: a file (Jinja), or `chatml`; `null`: the tokenizer's own."""
    packing: bool | None = None
    """Conversations: several in a row of `max_length` tokens, each by itself."""
    samples: Annotated[int, Field(ge=0, le=100)] | None = None
    """Conversations: of so many held-out ones `result.json` keeps what is asked and answered, before the training and
    after; 0: of none. `null`: 3."""
    augment: Augment | None = None
    """Images: what is done to those that are trained on. `null`: the task's own, of your own images
    `crop-flip`; `none`: nothing."""
    teacher: str | None = None
    """Folder of a finished run of the same model: learn its last hidden states in place of the labels. The score is the
    share of its effect that is captured, on held-out texts. Classification and regression only."""

    @property
    def plain(self) -> Task:
        """The task of this name, on its data."""
        return _task_of(self.name, dict(self))

    @property
    def definition(self) -> Task:
        """The task, as this section uses it."""
        return self.plain if self.teacher is None else DISTILLATION.of(self.plain)

    @property
    def kind(self) -> Kind:
        """What kind of task it is, as this section uses it."""
        return kind_of(self.definition)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from ..data import TASKS

        if name not in TASKS and name not in OWN:
            raise PydanticCustomError("unknown", "{why}", {"why": unknown("task", (*TASKS, *OWN), name)})
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        try:
            task = _task_of(data["name"], {})
        except (AttributeError, TypeError, KeyError, UserError):
            return data  # the name is at fault, and is complained about
        own: dict[str, Any] = {
            "train_size": task.sizes.train,
            "validation_size": task.sizes.validation,
            "test_size": task.sizes.test,
            "test_sets": task.test_sets,
        }
        own |= kind_of(task).defaults(task) | own_columns(data["name"])
        return {**data, **{name: value for name, value in own.items() if data.get(name) is None}}

    @model_validator(mode="after")
    def _fits_the_task(self) -> TaskSection:
        task = self.plain
        try:
            task.check_test_sets(self.test_sets)
        except UserError as error:
            raise PydanticCustomError("below", "test_sets: {why}", {"why": str(error)}) from error
        try:
            check_own(self, self.name)
            for field in dict.fromkeys(field for kind in KINDS.values() for field in kind.fields):
                if getattr(self, field) is not None and field not in kind_of(task).fields:
                    if self.name in OWN:
                        those = either([name for name, one in OWN.items() if field in KINDS[one.kind].fields])
                        raise UserError(f"{field}: only {those} has it, and task.name is '{self.name}'")
                    those = ", ".join(kind.name for kind in KINDS.values() if field in kind.fields)
                    raise UserError(f"{field}: only tasks of {those} have it, {self.name} is one of {task.kind}")
            kind_of(task).check(self, task)
            if self.test_size is not None and task.reported_split == "validation":
                scored = f"the scores of {self.name} are those of its validation split"
                raise UserError(f"test_size: {scored}, so give validation_size")
        except UserError as error:
            raise PydanticCustomError("below", "{why}", {"why": str(error)}) from error
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        others = {name for name in OwnFields.model_fields if values[name] is None}
        return {"name": self.name, **{name: value for name, value in values.items() if name not in others}}


def _task_of(name: str, values: Mapping[str, Any]) -> Task:
    """A task: on data of the user's own, which the values of its section name, or one of `TASKS`."""
    from ..data import get_task

    return own_task(OWN[name], values) if name in OWN else get_task(name)


class ReferenceSection(Section):
    """Another method, trained beside this one on the same data; what is not given is as in the recipe. Where
    only `learning_rate` is given here, the head has that rate, too."""

    method: BoundMethod
    epochs: Size | None = None
    learning_rate: Rate | None = None
    head_learning_rate: Rate | None = None


class RunRecipe(Section):
    """What a recipe of any kind has."""

    if TYPE_CHECKING:  # each kind has its own, in its own order
        name: str
        task: Any
        method: BoundMethod
        training: Any
        seed: int

        @property
        def model(self) -> str: ...

    @property
    def task_title(self) -> str:
        """What results call the task."""
        name: str = self.task.name
        return name

    @property
    def test_sets(self) -> tuple[str, ...]:
        """What is scored in the end, of kinds of runs that have test sets."""
        return ()

    def resolved(self) -> dict[str, Any]:
        """Plain values, every default filled in: what result.json and recipe.yaml hold."""
        return self.model_dump(mode="json", by_alias=True)


class Recipe(RunRecipe):
    """A whole run. See the module's docstring for the file."""

    name: str
    base: Annotated[ModelSection, Field(alias="model")]
    task: TaskSection
    method: BoundMethod
    training: TrainingSection = TrainingSection()
    calibration: CalibrationSection = CalibrationSection()
    reference: ReferenceSection | None = None
    seed: Seed = 0

    @property
    def not_on_quantised(self) -> Method | None:
        """A method of it, or of its reference, that is no adapter of PEFT on a frozen base: it trains on no quantised
        one."""
        methods = (self.method, *(() if self.reference is None else (self.reference.method,)))

        def can(one: Method) -> bool:
            return isinstance(one, PeftMethod) and one.base_use == "frozen" and one.is_trained_quantised

        return next((one for one in methods if not can(one)), None)

    @property
    def model(self) -> str:
        """The name of the base model."""
        return self.base.name

    @property
    def task_title(self) -> str:
        return self.task.definition.name

    @property
    def test_sets(self) -> tuple[str, ...]:
        return self.task.test_sets or ()

    @property
    def selected_by(self) -> str:
        """The metric of the validation scores that the best epoch is chosen by."""
        return self.training.select_by or self.task.definition.metric

    @property
    def in_float32(self) -> Recipe:
        """The same in float32; a quantised base stays as it is."""
        return self.in_precision("fp32")

    def in_precision(self, precision: Precision) -> Recipe:
        """The same in a precision, its frozen weights too; a quantised base stays as it is."""
        training = self.training.model_copy(update={"precision": precision})
        changes = {"dtype": None, "attention": self.base.attention if self.base.computes_in(precision) else None}
        return self.model_copy(update={"training": training, "base": self.base.model_copy(update=changes)})

    @property
    def with_kept_template(self) -> Recipe:
        """The same for the tokenizer that a finished run has kept, in which the chat template is that it was trained
        in."""
        return self.model_copy(update={"task": self.task.model_copy(update={"chat_template": None})})

    @property
    def unquantized(self) -> Recipe:
        """The same on the base's own weights."""
        return self.model_copy(update={"base": self.base.model_copy(update={"quantization": None})})

    @model_validator(mode="after")
    def _selected_by_a_score(self) -> Recipe:
        wanted, known = self.training.select_by, self.task.kind.validation_metrics(self.task.definition)
        if wanted is not None and wanted not in known:
            given = f"{wanted!r} is no metric of the validation scores of {self.task.name}"
            why = f"{given} (allowed: {', '.join(map(repr, known))})"
            raise PydanticCustomError("below", "training.select_by: {why}", {"why": why})
        return self

    @model_validator(mode="after")
    def _reference_falls(self) -> Recipe:
        if self.reference is not None and self.reference.learning_rate is not None:
            self.training.check_falls("reference.learning_rate", self.reference.learning_rate)
        return self

    @model_validator(mode="after")
    def _base_fits(self) -> Recipe:
        dtype, precision = self.base.dtype, self.training.precision
        if dtype not in (None, "fp32", precision):
            allowed = " or ".join(map(repr, dict.fromkeys(("fp32", precision))))
            why = f"{dtype!r} is not allowed with training.precision {precision!r}: it must be {allowed}"
            raise PydanticCustomError("below", "model.dtype: {why}", {"why": why})
        if not self.base.computes_in(precision):
            why = f"{self.base.attention!r} computes in 16 bits alone: set training.precision to bf16 or fp16"
            raise PydanticCustomError("below", "model.attention: {why}", {"why": why})
        if self.base.quantization is None:
            return self
        if (one := self.not_on_quantised) is not None:
            why = f"{one.name!r} is not allowed: it must be an adapter of PEFT on a frozen base"
            raise PydanticCustomError("below", "model.quantization: {why}", {"why": why})
        if self.task.teacher is not None:
            why = "with a teacher, hidden states are compared with those of the base's own weights"
            raise PydanticCustomError("below", "model.quantization: {why}", {"why": why})
        if dtype is not None:
            why = "a quantised base has the dtype of its format; leave one of the two out"
            raise PydanticCustomError("below", "model.dtype: {why}", {"why": why})
        return self

    @model_serializer(mode="wrap")
    def _as_in_a_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {"model" if name == "base" else name: value for name, value in values.items()}

    def reference_recipe(self) -> Recipe | None:
        """The run of the reference as a recipe of its own."""
        if self.reference is None:
            return None
        rates = {"epochs", "learning_rate", "head_learning_rate"}
        given = self.reference.model_dump(include=rates, exclude_none=True)
        if "learning_rate" in given:
            given.setdefault("head_learning_rate", None)  # follows the reference's own learning rate
        return self.model_copy(
            update={
                "name": f"{self.name}-reference",
                "method": self.reference.method,
                "training": self.training.model_copy(update={**given, "save_updates": False}),
                "reference": None,
            }
        )
