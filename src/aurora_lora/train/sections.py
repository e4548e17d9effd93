"""The sections of a recipe that do not depend on the task, and the types of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..data.models import MODELS
from ..deploy.formats import Quantization
from ..errors import ArgumentError, one_line, unknown
from ..files import expanded
from ..methods import Method, get_method

Size = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Steps = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Threads = Annotated[int, Field(gt=0, le=256)]
Precision = Literal["fp32", "bf16", "fp16"]
Logger = Literal["tensorboard", "wandb", "trackio"]
_LEAST = 1e-7
"""Where Transformers lets a polynomial schedule end."""


def _one_or_several(given: Any) -> Any:
    """Names in a list, of which a single one may stand alone."""
    return [given] if isinstance(given, str) else given


class Section(BaseModel):
    """Unknown fields are errors, a switch is no number nor a number a text, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values of some fields, as attributes are called; they are not validated.

        Raises:
            ArgumentError: there is no such field, which pydantic would add without a word.
        """
        known = type(self).model_fields
        if others := [name for name in update or () if name not in known]:
            field = known.get("base")
            what = "a property, and the field is 'base'" if field and others[0] == field.alias else None
            what = what or f"an {unknown('field', known, others[0])}"
            raise ArgumentError(f"`update`: '{others[0]}' is {what}")
        return super().model_copy(update=None if update is None else dict(update), deep=deep)


class ModelSection(Section):
    """The base model: its name, or a section with `name` and how its weights are kept."""

    name: Annotated[str, Field(min_length=1)]
    """A packaged model, a hub id or a local folder."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Of a model of the hub: a branch, a tag or a commit; `null`: the default branch. The commit that was loaded is
    `model_commit` of `result.json`, and a finished run warns where it is loaded with another. Of a local folder that is
    a digest of its weights."""
    quantization: Quantization | None = None
    """Train an adapter on a base whose linear layers are in 4 or 8 bits (bitsandbytes), as QLoRA does."""
    dtype: Precision | None = None
    """Of the frozen weights; `null`: that of `training.precision`; the only other choice is `fp32`, which keeps them
    exact, at 4 bytes a parameter, although the computation is in the lower precision. Not with `quantization`."""
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = None
    """Transformers' implementation of attention; `null`: its own choice. Flash attention computes in 16 bits alone, and
    `aurora predict` and others that compute in fp32 take the usual one."""

    @property
    def is_flash(self) -> bool:
        """Whether it computes by flash attention, as far as the recipe says."""
        return (self.attention or "").startswith("flash")

    def computes_in(self, precision: Precision) -> bool:
        """Whether the implementation of attention does."""
        return precision != "fp32" or not self.is_flash

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping | ModelSection) else {"name": data}

    @model_validator(mode="after")
    def _of_the_hub(self) -> ModelSection:
        what = "a packaged model" if self.name in MODELS else "a folder" if expanded(self.name).exists() else ""
        if self.revision is not None and what:
            why = f"{self.revision!r} is not allowed with '{self.name}', {what}: only models of the hub have revisions"
            raise PydanticCustomError("below", "revision: {why}", {"why": why})
        return self

    @model_serializer(mode="wrap")
    def _plain(self, dump: SerializerFunctionWrapHandler) -> Any:
        """The name alone where there is no more to say."""
        given = {name: value for name, value in dump(self).items() if value is not None}
        return self.name if len(given) == 1 else given


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
        raise PydanticCustomError("below", "{why}", {"why": one_line(error)}) from error


BoundMethod = Annotated[
    Method, PlainValidator(_bound), PlainSerializer(lambda method: {"name": method.name, **method.options})
]
"""In a recipe and in results the name of a method and its options beside that; else the method bound to them."""


class TrainingSection(Section):
    """AdamW, by default with a linear schedule."""

    epochs: Size = 3
    batch_size: Size = 32
    """Examples of a forward pass in one process. A step takes `gradient_accumulation_steps` of them, and as many
    examples on any number of processes: each does its share
    (docs/trainers.md)."""
    eval_batch_size: Size = 64
    """Of each process."""
    learning_rate: Rate = 5e-3
    """For query and value; all linear layers want less, 2e-3 say, as in the recipes of `aurora init`."""
    head_learning_rate: Rate | None = None
    """Of a new head, where the task has one; `null`: `learning_rate`."""
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
    """Score the validation split, and write a checkpoint, after each epoch or each N steps.
    The best score's checkpoint is deployed; of equal scores, the first's."""
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
        BeforeValidator(_one_or_several),
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

    @model_validator(mode="after")
    def _falls(self) -> TrainingSection:
        self.check_falls("learning_rate", self.learning_rate)
        return self

    def check_falls(self, field: str, rate: float) -> None:
        """Raise a PydanticCustomError for a learning rate that the schedule cannot lower to its end."""
        if self.scheduler == "polynomial" and rate <= _LEAST:
            why = f"{rate!r} is not allowed with scheduler 'polynomial', which ends at {_LEAST}"
            raise PydanticCustomError("below", "{field}: {why}", {"field": field, "why": why})


class CalibrationSection(Section):
    """The calibration before each evaluation; the best checkpoint keeps its matrices."""

    examples: Size = 256
    batch_size: Size = 32
    ridge: Number = 1e-4
    """The least strength of the ridge of `calibrate`: each layer chooses its own from there up."""
