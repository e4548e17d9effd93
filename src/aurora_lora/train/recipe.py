"""A recipe: everything that decides a training run, in one YAML file, validated once.

    name: demo
    model: minilm-l6                 # a packaged model, a hub id or a local folder
    task: {name: movie-sentiment, train_size: 3000}
    method: {name: aurora, r: 2, target_modules: [query, value]}
    training: {epochs: 3, batch_size: 32, learning_rate: 5e-3}

What is left out has a default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..data import TASKS, Task, get_task
from ..data.dreambooth import DREAMBOOTH
from ..data.models import MODELS
from ..data.own.kinds import OWN, OwnKind
from ..data.own.source import OwnData
from ..data.task import Augment
from ..deploy.formats import Quantization
from ..errors import UserError, one_line, unknown
from ..field_errors import Section, validated
from ..files import expanded
from ..methods import Method, get_method
from ..methods.base import PeftMethod
from ..methods.options import TARGETS, LowRank
from .kind_facts import FACTS, Facts, facts_of, taught
from .recipe_files import find_recipe, parse, set_field

Size = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Steps = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=1e-7, le=1e30, allow_inf_nan=False)]
"""A learning rate: above where Transformers lets a polynomial schedule end."""
Number = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Threads = Annotated[int, Field(gt=0, le=256)]
Precision = Literal["fp32", "bf16", "fp16"]
Logger = Literal["tensorboard", "wandb", "trackio"]
LEAST_EPOCHS, LEAST_STEPS = 3, 200
"""Of a training whose epochs nobody gave; 100 are too few for 240 rows of three classes: 67%, not 77% (one seed)."""
CHANGE_NOTHING = (
    "task.test_sets",
    "training.report_to",
    "training.eval_batch_size",
    "training.checkpoint_every",
    "training.workers",
)
"""Fields that may change when a run goes on: what is trained does not depend on them."""


def below(why: str) -> PydanticCustomError:
    """The error of a section that names its field itself; see `field_errors`."""
    return PydanticCustomError("below", "{why}", {"why": why})


class ModelSection(Section):
    """The base model: its name, or a section with `name` and how its weights are kept."""

    name: Annotated[str, Field(min_length=1)]
    """A packaged model, a hub id or a local folder."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Of a model of the hub: a branch, a tag or a commit; `null`: the default branch. The commit that was loaded is
    `model_commit` of `result.json`."""
    quantization: Quantization | None = None
    """Train an adapter on a base whose linear layers are in 4 or 8 bits (bitsandbytes), as QLoRA does."""
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = None
    """Transformers' implementation of attention; `null`: its own choice. Flash attention computes in 16 bits alone, and
    `aurora predict` and others that compute in fp32 take the usual one."""

    def computes_in(self, precision: Precision) -> bool:
        """Whether the implementation of attention does."""
        return precision != "fp32" or not (self.attention or "").startswith("flash")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping | ModelSection) else {"name": data}

    @model_validator(mode="after")
    def _of_the_hub(self) -> ModelSection:
        if self.revision is not None and (self.name in MODELS or expanded(self.name).exists()):
            raise below(
                f"revision: {self.revision!r} is not allowed with '{self.name}': only models of the hub have any"
            )
        return self

    @model_serializer(mode="wrap")
    def _plain(self, dump: SerializerFunctionWrapHandler) -> Any:
        """The name alone where there is no more to say."""
        given = {name: value for name, value in dump(self).items() if value is not None}
        return self.name if len(given) == 1 else given


def _bound(given: Any) -> Method:
    if isinstance(given, Method):
        return given
    options = dict(given) if isinstance(given, Mapping) else {"name": given}
    if not isinstance(name := options.pop("name", None), str):
        raise below(f"name: {name!r} is not allowed: it must be the name of a method")
    if (start := options.pop("from", None)) is not None and not isinstance(start, str):
        raise below(f"from: {start!r} is not allowed: it must be the folder of an adapter or of its run")
    try:
        method = get_method(name).bind(options)
        if start and not (isinstance(method, PeftMethod) and method.base_use == "frozen"):
            raise ValueError(f"from: {name} is no adapter of PEFT on a base that stays as it is")
        return replace(method, start_from=start)
    except (ValueError, TypeError) as error:
        raise below(one_line(error)) from error


BoundMethod = Annotated[
    Method,
    PlainValidator(_bound),
    PlainSerializer(
        lambda method: {"name": method.name, **method.options, **({"from": one} if (one := method.start_from) else {})}
    ),
    type[LowRank],  # so that an error knows where `r` belongs
]
"""In a recipe and in results the name of a method and its options beside that; else the method bound to them."""


class TrainingSection(Section):
    """AdamW, by default with a linear schedule."""

    epochs: Size | None = None
    """`null`: 3, or of few rows as many as make 200 steps."""
    max_steps: Size | None = None
    """Train for so many steps, whatever `epochs` says."""
    batch_size: Size = 32
    """Examples of a forward pass in one process. A step takes `gradient_accumulation_steps` of them, and as many
    examples on any number of processes: each does its share (docs/trainers.md)."""
    eval_batch_size: Size = 64
    """Of each process."""
    learning_rate: Rate = 5e-3
    """For query and value; all linear layers want less, 2e-3 say, as in the recipes of `aurora init`."""
    head_learning_rate: Rate | None = None
    """Of a new head, where the task has one; `null`: `learning_rate`."""
    weight_decay: Number = 0.0
    scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "linear"
    """Of the learning rate, after the warm-up, as Transformers computes it; `constant` has no warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of all steps over which the learning rate rises."""
    warmup_steps: Steps | None = None
    """Instead of the ratio."""
    gradient_accumulation_steps: Size = 1
    max_grad_norm: Number = 1.0
    """0 switches clipping off."""
    class_weights: Literal["balanced"] | None = None
    """Classification: `balanced` counts an example in the training loss by how rare its class is, 1 on average."""
    precision: Precision = "fp32"
    """Of the computation, and of the weights that are not trained; what is trained is kept in fp32."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass, and compute it again: less memory, about a third more time."""
    eval_every: Literal["epoch"] | Size = "epoch"
    """Score the validation split, and write a checkpoint, after each epoch or each N steps.
    The best score's checkpoint is deployed; of equal scores, that of the least loss."""
    select_by: str | None = None
    """The metric of the validation scores that says which is the best, here and for `patience`: any that the task's
    evaluation gives, such as `nll`, of which less is better, or `macro_f1` where classes are of unequal size. `null`:
    the task's own. A study with it names its `tuning.metric`."""
    checkpoint_every: Size | None = None
    """Steps between further checkpoints, for long epochs."""
    patience: Size | None = None
    """Stop after so many evaluations in a row without a better validation score (an equal one is none);
    `null` never stops early."""
    report_to: Annotated[
        tuple[Logger, ...],
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
        Field(strict=False),
    ] = ()
    """Loggers, each an optional package, that get losses, learning rates and scores as they come; TensorBoard's files
    are in `logs/` of the run."""
    threads: Threads | None = None
    """CPU threads; `null` leaves the choice to PyTorch."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that load examples beside the training; 0 is none."""
    save_updates: bool = False
    """Keep each epoch's update of the weights, as its factors, in `updates/`; not the reference's."""


class CalibrationSection(Section):
    """The calibration before each evaluation; the best checkpoint keeps its matrices."""

    examples: Size = 256
    batch_size: Size = 32
    ridge: Number = 1e-4
    """The least strength of the ridge of `calibrate`: each layer chooses its own from there up."""


class KeptCalibrationSection(CalibrationSection):
    __doc__ = CalibrationSection.__doc__
    statistics: Annotated[int, Field(ge=0, le=1024)] = 0
    """Eigenvectors to keep of the inputs of each layer, beside the adapter, for a merge into a quantised model without
    data; 32 do, see `input_statistics`. 0: none."""


# ---------------------------------------------------------------- the steps of a training


def examples_of_a_step(training: Any) -> int:
    """Training examples of one step, however many processes share them; `training` is the section of any recipe."""
    return int(training.batch_size * training.gradient_accumulation_steps)


def steps_of_an_epoch(training: Any, examples: int) -> int:
    """Steps over so many training examples; the last may have fewer than the others."""
    return math.ceil(examples / examples_of_a_step(training))


def epochs_of(training: TrainingSection, examples: int) -> int:
    """Epochs over so many training examples; `max_steps` may end in the midst of the last one."""
    each = max(1, steps_of_an_epoch(training, examples))
    if training.max_steps is not None:
        return math.ceil(training.max_steps / each)
    return training.epochs or max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / each))


def steps_of(training: TrainingSection, examples: int) -> int:
    """Steps in all, over so many training examples."""
    return training.max_steps or steps_of_an_epoch(training, examples) * epochs_of(training, examples)


class Share(NamedTuple):
    """What one process does in a step: so many examples of a forward pass, in so many forward passes."""

    batch_size: int
    accumulation: int


def divide(training: Any, processes: int) -> Share:
    """Each process's share of a step, where so many train together.

    Raises:
        UserError: the examples of a step cannot be divided evenly.
    """
    batch_size, accumulation = training.batch_size, training.gradient_accumulation_steps
    fewer = math.gcd(accumulation, processes)
    smaller = processes // fewer
    if batch_size % smaller:
        raise UserError(
            f"training.batch_size: the {batch_size * accumulation} examples of a step (batch_size {batch_size} x "
            f"gradient_accumulation_steps {accumulation}) cannot be divided among {processes} processes (allowed: a "
            f"multiple of {processes} examples, or a number of processes that divides {batch_size * accumulation})"
        )
    return Share(batch_size // smaller, accumulation // fewer)


# ---------------------------------------------------------------- data of the user's own


def _names(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value and (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return value
    raise PydanticCustomError("columns", "the name of a column, in quotes where it is a number, or a list of names")


Columns = Annotated[tuple[str, ...], BeforeValidator(_names), Field(strict=False)]
"""The name of a column, or a list of them."""


class OwnFields(BaseModel):
    """Where the data is, and which columns are what. Only for the tasks of `OWN`, such as `classification`."""

    data: str | None = None
    """A file (.csv, .tsv, .xlsx, .json, .jsonl, .parquet, .arrow), a folder, or a data set of the hub, `owner/name`."""
    validation_data: str | None = None
    """The same for validation; where neither it nor a split of `data` gives it, a share of the training rows."""
    test_data: str | None = None
    """The same for the test."""
    config: str | None = None
    """Of a data set of the hub, or of a folder whose README.md has `configs`: its configuration."""
    revision: str | None = None
    """Of a data set of the hub: a branch, a tag or a commit."""
    encoding: str | None = None
    """Of text files; `null`: UTF-8."""
    train_split: str | None = None
    """Which split of the data to train on; `null`: the one of this name, or the only one."""
    validation_split: str | None = None
    """The same for validation; also `valid`, `val` and `dev` are looked for."""
    test_split: str | None = None
    """The same for the test."""
    decimal_comma: bool | None = None
    """Of CSV and Excel files: `3,5` is 3.5."""
    skip_bad_rows: bool | None = None
    """Leave out rows without a text or label and others that cannot be used, and count them."""
    text: Columns | None = None
    """The column with the texts; two columns for pairs of texts."""
    label: Columns | None = None
    """The column with the labels or numbers; for `multi-label` also one column of 0 and 1 a label. Numbers are trained
    standardised, and given in their own units."""
    question: Columns | None = None
    """Of `choices`: the column with the questions."""
    options: Columns | None = None
    """Of `choices`: a column with a list, or one column an option."""
    answer: Columns | None = None
    """Of `choices`: the right option, by its text, its letter, its column, or its number from 0. Of `chat`: the column
    with the completions."""
    messages: Columns | None = None
    """Of `chat`: the column with the messages."""
    message_keys: Columns | None = None
    """Of `chat`: what messages call their role and their content."""
    roles: Columns | None = None
    """Of `chat`: what messages call user, assistant and system."""
    image: Columns | None = None
    """Of `images`: the column with the images, where they are no files in folders by class."""


def own_source(kind: OwnKind, values: Mapping[str, Any]) -> tuple[OwnData, dict[str, tuple[str, ...]]]:
    """Where the data of a task of the user's own is, and its columns by the fields that name them; those that name none
    have their defaults."""
    source: dict[str, Any] = {name: values.get(name) for name in OwnData.__dataclass_fields__}
    source["data"] = source["data"] or "data"
    return OwnData(**source), {name: _names(values.get(name)) or default for name, default in kind.columns.items()}


def check_own(fields: OwnFields, kind: OwnKind) -> None:
    """Raise a UserError, which begins with the field, where the data or their columns do not make a task of a kind."""
    if fields.data is None:
        raise UserError("data: this field must be given: a file, a folder, or a data set of the hub (owner/name)")
    columns = own_source(kind, dict(fields))[1]
    for field, names in columns.items():
        if len(names) > (most := kind.several.get(field, 1)) or len(set(names)) < len(names):
            raise UserError(f"{field}: it takes {'one column' if most == 1 else f'up to {most} columns, each once'}")
    learned = {name: field for field in ("label", "answer") for name in columns.get(field, ())}
    for field in ("text", "question", "image"):
        if shared := next((name for name in columns.get(field, ()) if name in learned), None):
            why = "the model would read what it is to answer"
            raise UserError(f"{field}: '{shared}' is the column of task.{learned[shared]} as well: {why}")


# ---------------------------------------------------------------- the recipe


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
    """Tokens; longer texts are cut. Not for images. `null`: 128; for questions with choices 256, for conversations
    1,024."""
    test_sets: Names | None = None
    """Which of the task's test sets to score; `null`: all."""
    prompt: str | None = None
    """Multiple choice: `instruction`, LLM-Adapters' form, or `cloze`, where the choice goes on with the text.
    `null`: `cloze`; of `commonsense` `instruction`. Of `chat`: the column with the prompts."""
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
    augment: Augment | None = None
    """Images: what is done to those that are trained on. `null`: the task's own, of your own images
    `crop-flip`; `none`: nothing."""
    teacher: str | None = None
    """Folder of a finished run of the same model: learn its last hidden states in place of the labels. The score is the
    share of its effect that is captured, on held-out texts. Classification and regression only."""

    @property
    def plain(self) -> Task:
        """The task of this name, on its data."""
        return OWN[self.name].task(*own_source(OWN[self.name], dict(self))) if self.name in OWN else get_task(self.name)

    @property
    def definition(self) -> Task:
        """The task, as this section uses it."""
        return self.plain if self.teacher is None else taught(self.plain)

    @property
    def kind(self) -> Facts:
        """What kind of task it is, as this section uses it."""
        return facts_of(self.definition)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in TASKS and name not in OWN:
            raise PydanticCustomError("unknown", "{why}", {"why": unknown("task", (*TASKS, *OWN), name)})
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        name = data.get("name") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or (name not in TASKS and name not in OWN):
            return data  # the name is at fault, and is complained about
        task = OWN[name].task(*own_source(OWN[name], {})) if name in OWN else TASKS[name]
        defaults: dict[str, Any] = {
            "train_size": task.sizes.train,
            "validation_size": task.sizes.validation,
            "test_size": task.sizes.test,
            "test_sets": task.test_sets,
            **facts_of(task).defaults(task),
            **({field: own for field, own in OWN[name].columns.items() if own} if name in OWN else {}),
        }
        return {**data, **{field: value for field, value in defaults.items() if data.get(field) is None}}

    @model_validator(mode="after")
    def _fits_the_task(self) -> TaskSection:
        task, own = self.plain, facts_of(self.plain)
        there = {*own.fields}
        if self.name in OWN:
            there |= {*OwnData.__dataclass_fields__, *OWN[self.name].columns}
        try:
            if others := [name for name in self.test_sets or () if name not in task.test_sets]:
                raise UserError(f"test_sets: {others[0]!r} is not one of {self.name}: {', '.join(task.test_sets)}")
            for field in (*OwnFields.model_fields, *(field for kind in FACTS.values() for field in kind.fields)):
                if getattr(self, field) is not None and field not in there:
                    raise UserError(f"{field}: task.name '{self.name}' ({task.kind}) does not have it")
            if self.name in OWN:
                check_own(self, OWN[self.name])
            own.check(self, task)
            if self.test_size is not None and task.reported_split == "validation":
                scored = f"the scores of {self.name} are those of its validation split"
                raise UserError(f"test_size: {scored}, so give validation_size")
        except UserError as error:
            raise below(str(error)) from error
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        others = {name for name in OwnFields.model_fields if values[name] is None}
        return {"name": self.name, **{name: value for name, value in values.items() if name not in others}}


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
        return self.model_dump(mode="json")


class Recipe(RunRecipe):
    """A whole run. See the module's docstring for the file."""

    name: str
    base: Annotated[ModelSection, Field(alias="model")]
    task: TaskSection
    method: BoundMethod
    training: TrainingSection = TrainingSection()
    calibration: KeptCalibrationSection = KeptCalibrationSection()
    reference: ReferenceSection | None = None
    seed: Seed = 0

    @property
    def not_on_quantised(self) -> Method | None:
        """Its method, or that of its reference, if it trains on no quantised base: no adapter of PEFT on a frozen
        one."""
        for one in (self.method, self.reference and self.reference.method):
            if one and not (isinstance(one, PeftMethod) and one.base_use == "frozen" and one.is_trained_quantised):
                return one
        return None

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

    def in_precision(self, precision: Precision) -> Recipe:
        """The same in a precision, its frozen weights too; a quantised base stays as it is."""
        training = self.training.model_copy(update={"precision": precision})
        changes = {} if self.base.computes_in(precision) else {"attention": None}
        return self.model_copy(update={"training": training, "base": self.base.model_copy(update=changes)})

    @property
    def with_kept_template(self) -> Recipe:
        """The same for the tokenizer that a finished run has kept, which has the chat template of the training."""
        return self.model_copy(update={"task": self.task.model_copy(update={"chat_template": None})})

    @property
    def unquantized(self) -> Recipe:
        """The same on the base's own weights."""
        return self.model_copy(update={"base": self.base.model_copy(update={"quantization": None})})

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        wanted, known = self.training.select_by, self.task.kind.validation_metrics(self.task.definition)
        if wanted is not None and wanted not in known:
            given = f"{wanted!r} is no metric of the validation scores of {self.task.name}"
            raise below(f"training.select_by: {given} (allowed: {', '.join(map(repr, known))})")
        if self.training.class_weights is not None and not self.task.kind.name.endswith("classification"):
            why = f"is for classification alone, not {self.task.kind.name}"
            raise below(f"training.class_weights: {self.training.class_weights!r} {why}")
        if not self.base.computes_in(self.training.precision):
            why = "computes in 16 bits alone: set training.precision to bf16 or fp16"
            raise below(f"model.attention: {self.base.attention!r} {why}")
        if self.base.quantization is not None:
            if (one := self.not_on_quantised) is not None:
                why = f"{one.name!r} is not allowed: it must be an adapter of PEFT on a frozen base"
                raise below(f"model.quantization: {why}")
            if self.task.teacher is not None:
                why = "with a teacher, hidden states are compared with those of the base's own weights"
                raise below(f"model.quantization: {why}")
        return self

    def reference_recipe(self) -> Recipe | None:
        """The run of the reference as a recipe of its own."""
        if self.reference is None:
            return None
        given = self.reference.model_dump(exclude={"method"}, exclude_none=True)
        if "learning_rate" in given:
            given.setdefault("head_learning_rate", None)  # follows the reference's own learning rate
        training = self.training.model_copy(update={**given, "save_updates": False})
        changes = {"method": self.reference.method, "training": training, "reference": None}
        return self.model_copy(update={"name": f"{self.name}-reference", **changes})


# ---------------------------------------------------------------- reading


AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


def load_recipe(recipe: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: a YAML file, or the name of a recipe of the package, such as `"demo"` or `"classification"`. A name is
            looked up first; a `Path` is always a file.
        overrides: `["training.epochs=1"]`, see `override`.

    Raises:
        UserError: there is no such recipe, it cannot be read, or a value is wrong; one line for each mistake.
    """
    found = find_recipe(recipe)
    return validate(override(found.values(), overrides), found.source)


def override(data: Any, overrides: Sequence[str]) -> Any:
    """A recipe's plain values, not validated yet, changed in place as the overrides say: `key=value` with dotted keys
    and values in YAML, such as `training.epochs=1`.

    Raises:
        UserError: an override is wrong.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    typed = {one.partition("=")[0] for one in overrides}
    for one in overrides if isinstance(data, dict) else ():
        key, equals, text = one.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"'{one}' is not of the form key=value, such as training.epochs=1")
        value = parse(text, f"'{one}'")
        if key == "method.name" and isinstance(before := data.get("method"), dict):
            data["method"] = _options_of(value, before, [name for name in before if f"method.{name}" in typed])
        set_field(data, key, value)
    return data


def _options_of(name: Any, before: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """The options of a method that takes another's place: those that were typed, and of the others all, if it has them,
    or else its own defaults, on the same layers if it has layers to choose."""
    for kept in (before.keys() - {"name"}, TARGETS, ()):
        with suppress(ValueError, TypeError):
            options = {option: value for option, value in before.items() if option in kept}
            get_method(name).bind(options)
            return options | {option: before[option] for option in typed}
    return dict(before)


def is_result(value: Any) -> bool:
    """Whether a value that was read from a file is the result of a run."""
    return isinstance(value, Mapping) and {"schema", "recipe", "metric"} <= value.keys()


def task_name(data: Any) -> Any:
    """The name of the task in a recipe's plain values, or None."""
    found = data.get("task") if isinstance(data, Mapping) else None
    return found.get("name") if isinstance(found, Mapping) else found


def validate(data: Any, source: str) -> Recipe:
    """A recipe from plain values, as YAML or JSON gives them; `source` names them in errors.

    Raises:
        UserError: one line for each mistake, with the dotted field, the value and what is allowed.
    """
    if task_name(data) == DREAMBOOTH.name:
        raise UserError(f"{source}: task.name: '{DREAMBOOTH.name}' is only for `aurora train` and `aurora reproduce`")
    return validate_as(Recipe, data, source)


def validate_as(kind: type[AnyRecipe], data: Any, source: str) -> AnyRecipe:
    """A recipe of the given kind from plain values; see `validate`."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: a recipe is a mapping of fields, such as `model: minilm-l6`")
    with_defaults = {name for name, field in kind.model_fields.items() if isinstance(field.default, BaseModel)}
    given = {name: value for name, value in data.items() if value is not None or name not in with_defaults}  # empty
    return validated(kind, given, source)


def check_same_recipe(values: Any, recipe: RunRecipe, source: Path | str, holds: str) -> None:
    """Raise a UserError, which begins with `holds`, if the values that are stored at `source` are of another recipe."""
    stored = validate_as(type(recipe), values, str(source))
    there, here = (
        {field: value for field, value in flatten(one.resolved()).items() if field not in CHANGE_NOTHING}
        for one in (stored, recipe)
    )
    if found := differences(there, here):
        raise UserError(
            f"{holds} the run of another recipe; they differ in {', '.join(found)}: choose another output folder"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], *, missing: Any = "not given") -> list[str]:
    """`seed (there 0, here 1)` for each field that has another value here; `missing` stands for an absent one."""
    pairs = ((field, there.get(field, missing), here.get(field, missing)) for field in sorted({*there, *here}))
    return [f"{field} (there {old!r}, here {new!r})" for field, old, new in pairs if old != new]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}{key}."))
    return flat or {prefix.rstrip("."): {}}
