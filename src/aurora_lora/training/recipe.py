"""A recipe: everything that decides a training run, in one YAML file, validated once.

    name: demo
    model: minilm-l6                 # a packaged model, a hub id or a local folder
    task: {name: movie-sentiment, train_size: 3000}
    method: {name: aurora, r: 2, target_modules: [query, value]}
    training: {epochs: 3, batch_size: 32, learning_rate: 5e-3}

What is left out has a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ..errors import UserError, unknown
from ..methods import Method, get_method
from ..methods.base import PeftMethod
from ..tasks.dreambooth import DREAMBOOTH
from ..tasks.own.kinds import OWN
from ..tasks.task import Augment
from . import yaml_text
from .kinds import KINDS, Kind, kind_of
from .kinds.distillation import DISTILLATION
from .own_section import OwnFields, check_own, own_columns, own_task

if TYPE_CHECKING:
    from ..tasks import Task

Size = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Steps = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Threads = Annotated[int, Field(gt=0, le=256)]


class Section(BaseModel):
    """Unknown fields are errors, a switch is no number nor a number a text, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


CHANGE_NOTHING = ("task.test_sets", "training.report_to")
"""Fields that may change when a run goes on: what is trained does not depend on them."""
Precision = Literal["fp32", "bf16", "fp16"]


class ModelSection(Section):
    """The base model: its name, or a section with `name` and how its weights are kept."""

    name: Annotated[str, Field(min_length=1)]
    """A packaged model, a hub id or a local folder."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """Train an adapter on a base whose linear layers are in 4 or 8 bits (bitsandbytes), as QLoRA does."""
    dtype: Precision | None = None
    """Of the frozen weights: `training.precision` if None; `fp32` keeps them exact while a lower one is computed in."""
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = None
    """Transformers' implementation of attention; None is its own choice."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping | ModelSection) else {"name": data}

    @model_serializer(mode="wrap")
    def _plain(self, dump: SerializerFunctionWrapHandler) -> Any:
        """The name alone where there is no more to say."""
        given = {name: value for name, value in dump(self).items() if value is not None}
        return self.name if len(given) == 1 else given


class TaskSection(OwnFields, Section):
    """The data, and how it is split and cut."""

    name: str
    train_size: Size | None = None
    """None is all that is left after validation and test."""
    validation_size: Size | None = None
    """None is the task's own choice, as for the fields below; where the data comes with splits, the whole split."""
    test_size: Size | None = None
    """Of each test set."""
    split_seed: Seed = 0
    max_length: Size | None = None
    """Tokens; longer texts are cut. Not for images."""
    test_sets: Names | None = None
    """Which of the task's test sets to score."""
    prompt: str | None = None
    """Multiple choice: `instruction`, LLM-Adapters' form, or `cloze`, where the choice goes on with the text."""
    scorer: Literal["choices", "generated"] | None = None
    """Multiple choice: by the likelihood of the choices, or by what the model writes as well (test sets only)."""
    loss_on: Literal["all", "answer"] | None = None
    """Multiple choice: train on the whole text or on the answer alone."""
    augment: Augment | None = None
    """Images: what is done to those that are trained on."""
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
        from ..tasks import TASKS

        if name not in TASKS and name not in OWN:
            raise PydanticCustomError("plain", "{why}", {"why": unknown("task", (*TASKS, *OWN), name)})
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        try:
            task = _task_of(data["name"], {})
        except (TypeError, KeyError, UserError):
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
            raise PydanticCustomError("task", "test_sets: {why}", {"why": str(error)}) from error
        try:
            check_own(self, self.name)
            for field in dict.fromkeys(field for kind in KINDS.values() for field in kind.fields):
                if getattr(self, field) is not None and field not in kind_of(task).fields:
                    those = ", ".join(kind.name for kind in KINDS.values() if field in kind.fields)
                    raise UserError(f"{field}: only tasks of {those} have it, {self.name} is one of {task.kind}")
            kind_of(task).check(self, task)
            if self.test_size is not None and task.reported_split == "validation":
                scored = f"the scores of {self.name} are those of its validation split"
                raise UserError(f"test_size: {scored}, so give validation_size")
        except UserError as error:
            raise PydanticCustomError("task", "{why}", {"why": str(error)}) from error
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        others = {name for name in OwnFields.model_fields if values[name] is None}
        return {"name": self.name, **{name: value for name, value in values.items() if name not in others}}


def _task_of(name: str, values: Mapping[str, Any]) -> Task:
    """A task: on data of the user's own, which the values of its section name, or one of `TASKS`."""
    from ..tasks import get_task

    return own_task(OWN[name], values) if name in OWN else get_task(name)


def _bound(given: Any) -> Method:
    """The method that a recipe names, with the options beside its name."""
    if isinstance(given, Method):
        return given
    given = {"name": given} if isinstance(given, str) else given
    try:
        if not isinstance(given, Mapping):
            raise ValueError(f"{given!r} is not allowed: it must be the name of a method, or a mapping with its name")
        if not isinstance(name := given.get("name"), str):
            why = "this field must be given" if name is None else f"{name!r} is not allowed: it must be a valid string"
            raise ValueError(f"name: {why}")
        return get_method(name).bind({option: value for option, value in given.items() if option != "name"})
    except (ValueError, TypeError) as error:
        raise PydanticCustomError("method", "{why}", {"why": " ".join(str(error).split())}) from error


BoundMethod = Annotated[
    Method, PlainValidator(_bound), PlainSerializer(lambda method: {"name": method.name, **method.options})
]
"""In a recipe and in results the name of a method and its options beside that; else the method bound to them."""


class TrainingSection(Section):
    """AdamW, by default with a linear schedule."""

    epochs: Size = 3
    batch_size: Size = 32
    """Examples of a forward pass in one process. A step takes `gradient_accumulation_steps` of them, and as many
    examples on any number of processes: each does its share; see `training.batches`."""
    eval_batch_size: Size = 64
    """Of each process."""
    learning_rate: Rate = 5e-3
    head_learning_rate: Rate | None = None
    """None is `learning_rate`."""
    weight_decay: Number = 0.0
    scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = "linear"
    """Of the learning rate, after the warm-up, as Transformers computes it; `constant` has no warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of all steps over which the learning rate rises."""
    warmup_steps: Steps | None = None
    """Instead of the ratio."""
    gradient_accumulation_steps: Size = 1
    max_grad_norm: Number = 1.0
    """0 switches clipping off."""
    precision: Precision = "fp32"
    """Of the computation, and of the weights that are not trained; what is trained is kept in fp32."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass, and compute it again: less memory, about a third more time."""
    eval_every: Literal["epoch"] | Size = "epoch"
    """Score the validation split, and write a checkpoint, after each epoch or each N steps."""
    checkpoint_every: Size | None = None
    """Steps between further checkpoints, for long epochs."""
    patience: Size | None = None
    """Stop after so many evaluations in a row without a better validation score; None never stops early."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(strict=False)] = ()
    """Loggers, each an optional package, that get losses, learning rates and scores as they come; TensorBoard's files
    are in `logs/` of the run."""
    threads: Threads | None = None
    """CPU threads; None leaves the choice to PyTorch."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that read and transform images beside the training; 0 is none."""
    save_updates: bool = False
    """Keep each epoch's update of the weights, as its factors, in `updates/`; not the reference's."""


class CalibrationSection(Section):
    """The calibration that ends the run, and a lighter one before each evaluation."""

    examples: Size = 256
    batch_size: Size = 32
    ridge: Number = 1e-4


class ReferenceSection(Section):
    """Another method, trained beside this one on the same data; what is not given is as in the recipe."""

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
        seed: int

        @property
        def model(self) -> str: ...

    @property
    def task_title(self) -> str:
        """What results call the task."""
        name: str = self.task.name
        return name

    def resolved(self) -> dict[str, Any]:
        """Plain values, every default filled in: what result.json and recipe.yaml hold."""
        return self.model_dump(mode="json", by_alias=True)


AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


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
    def model(self) -> str:
        """The name of the base model."""
        return self.base.name

    @property
    def task_title(self) -> str:
        return self.task.definition.name

    @property
    def in_float32(self) -> Recipe:
        """The same in float32; a quantised base stays as it is."""
        training = self.training.model_copy(update={"precision": "fp32"})
        return self.model_copy(update={"training": training, "base": self.base.model_copy(update={"dtype": None})})

    @property
    def unquantized(self) -> Recipe:
        """The same on the base's own weights."""
        return self.model_copy(update={"base": self.base.model_copy(update={"quantization": None})})

    @model_validator(mode="after")
    def _base_fits(self) -> Recipe:
        dtype, precision, method = self.base.dtype, self.training.precision, self.method
        if dtype not in (None, "fp32", precision):
            allowed = " or ".join(map(repr, dict.fromkeys(("fp32", precision))))
            why = f"{dtype!r} is not allowed with training.precision {precision!r}: it must be {allowed}"
            raise PydanticCustomError("task", "model.dtype: {why}", {"why": why})
        if self.base.quantization is None:
            return self
        reference = [] if self.reference is None else [self.reference.method]
        for one in (method, *reference):
            if not isinstance(one, PeftMethod) or one.base_use != "frozen":
                why = f"{one.name!r} changes the base's own weights; an adapter of PEFT on a frozen base does not"
                raise PydanticCustomError("task", "model.quantization: {why}", {"why": why})
        if self.task.teacher is not None:
            why = "with a teacher, hidden states are compared with those of the base's own weights"
            raise PydanticCustomError("task", "model.quantization: {why}", {"why": why})
        if dtype is not None:
            why = "a quantised base has the dtype of its format; leave one of the two out"
            raise PydanticCustomError("task", "model.dtype: {why}", {"why": why})
        return self

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


# ---------------------------------------------------------------- reading


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` with dotted keys, such as `training.epochs=1`; values are YAML.

    Raises:
        UserError: the file cannot be read, or a value is wrong; one line for each mistake.
    """
    return validate(override(yaml_text.read(Path(path)), overrides), str(path))


def override(data: Any, overrides: Sequence[str]) -> Any:
    """A recipe's plain values, not validated yet, changed in place as the overrides say.

    Raises:
        UserError: an override is wrong.
    """
    for one in overrides if isinstance(data, dict) else ():
        key, equals, text = one.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise UserError(f"'{one}' is not of the form key=value, such as training.epochs=1")
        set_field(data, key, yaml_text.parse(text, f"'{one}'"))
    return data


def name_of(section: str, data: Any) -> Any:
    """The name that a section of a recipe's plain values has (`model`, `task`, `method`), or None."""
    found = data.get(section) if isinstance(data, Mapping) else None
    return found.get("name") if isinstance(found, Mapping) else found


def task_name(data: Any) -> Any:
    """The name of the task in a recipe's plain values, or None."""
    return name_of("task", data)


def validate(data: Any, source: str) -> Recipe:
    """A recipe from plain values, as YAML or JSON gives them; `source` names them in errors.

    Raises:
        UserError: one line for each mistake, with the dotted field, the value and what is allowed.
    """
    if task_name(data) == DREAMBOOTH.name:
        raise UserError(f"{source}: task.name: '{DREAMBOOTH.name}' is only for `aurora train` and `aurora reproduce`")
    return validate_as(Recipe, data, source)


def validate_as(kind: type[AnyRecipe], data: Any, source: str) -> AnyRecipe:
    """As `validate`, a recipe of any kind."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields, such as `model: minilm-l6`")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _lines(error, kind))) from error


def set_field(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a field of a recipe's plain values, by its dotted name.

    Raises:
        UserError: what stands before a dot has no fields.
    """
    *sections, last = key.split(".")
    here = data
    for name in sections:
        below = here.get(name)
        if below is None:
            below = here[name] = {}
        elif isinstance(below, str) and name in ("method", "model", "task"):
            below = here[name] = {"name": below}
        if not isinstance(below, dict):
            raise UserError(f"'{key}': {name} is {below!r}, which has no fields")
        here = below
    here[last] = value


def _lines(error: ValidationError, kind: type[RunRecipe]) -> Iterator[str]:
    """One line for each field that is wrong."""
    sections = _sections(kind)
    fields = {*_names(kind), *(name for section in sections.values() for name in section.model_fields)}
    problems: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # pydantic adds the member of a union that it tried ("constrained-int") to the path
        path = [str(part) for part in detail["loc"] if str(part) in fields or detail["type"] == "extra_forbidden"]
        problems.setdefault(".".join(path), []).append(detail)
    for field, details in problems.items():
        what = _what(details[0], kind, sections)
        if details[0]["type"] == "task" or (details[0]["type"] == "method" and re.match(r"\w+[=:]", what)):
            yield f"{field}.{what}".lstrip(".")  # the message starts with the option's name
        else:
            yield " or ".join([f"{field}: {what}", *(_allowed(detail) for detail in details[1:])])


def _what(detail: ErrorDetails, kind: type[RunRecipe], sections: Mapping[str, type[BaseModel]]) -> str:
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        section: type[BaseModel] = kind
        for part in detail["loc"][:-1]:
            section = sections.get(str(part), section)
        return unknown("field", _names(section), str(detail["loc"][-1]))
    if detail["type"] == "missing":
        return "this field must be given"
    if detail["type"] in ("method", "task"):
        return detail["msg"]
    if detail["type"] == "plain":
        return f"{value!r} is an {detail['msg']}"
    return f"{value!r} is not allowed: it must be {_allowed(detail)}"


def _allowed(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _names(section: type[BaseModel]) -> list[str]:
    """The names that a section's fields have in a file."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(kind: type[RunRecipe]) -> dict[str, type[BaseModel]]:
    """The fields of a recipe that are sections, by name."""
    return {
        name: part
        for name, field in zip(_names(kind), kind.model_fields.values(), strict=True)
        for part in (field.annotation, *get_args(field.annotation))
        if isinstance(part, type) and issubclass(part, BaseModel)
    }
