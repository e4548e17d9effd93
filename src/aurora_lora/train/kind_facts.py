"""What is known of each kind of task without loading PyTorch: its metrics, its fields in a recipe, its kind of model.

What a kind does, from encoding to prediction, is in `kinds/`. A new kind is a row in `FACTS` and a file there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..data import Task
from ..errors import UserError

if TYPE_CHECKING:  # lists of tasks load no PyTorch
    from ..methods.base import TaskType


def _length(task: Task) -> dict[str, Any]:
    return {"max_length": task.max_length}


def _no_check(section: Any, task: Task) -> None:
    pass


@dataclass(frozen=True)
class Facts:
    """A kind of task.

    Args:
        name: what `Task.kind` says.
        task_type: PEFT's name for the kind of model; image classifiers have none there.
        auto: the class of Transformers that loads the model.
        pipeline: the tag of a model card.
        metrics: those that every task of this kind has; `Task.also` adds to them.
        problem_type: of the new head that the task needs, by Transformers' name; None where it needs none.
        architectures: how the names of the models' own classes end.
        inputs: what an example is, `"text"` or `"image"`.
        fields: those of a recipe's task that only some kinds have.
        defaults: what is filled in of these fields, of a task.
        check: raises a UserError, which begins with the field, where a recipe's section does not fit the task.
        test_only: metrics that the scores on validation data do not have.
        scores_batches: whether `Kind.metrics` takes the outputs on batches as they are trained on.
        scored_at_least: examples that its metrics need.
        has_choices: whether an example is a question with choices, which is scored whole, for plans.
        scored_tokens: tokens of an example that come on top of its text when it is scored, for plans.
        learned_tokens: tokens of a text that have a loss where not all do, for plans; None where all may have one.
        no_answer: why `predict` has nothing to say.
    """

    name: str
    task_type: TaskType
    auto: str
    pipeline: str
    metrics: tuple[str, ...]
    problem_type: str | None = None
    architectures: tuple[str, ...] = ()
    inputs: str = "text"
    fields: tuple[str, ...] = ("max_length",)
    defaults: Callable[[Task], dict[str, Any]] = field(default=_length, repr=False)
    check: Callable[[Any, Task], None] = field(default=_no_check, repr=False)
    test_only: tuple[str, ...] = ()
    scores_batches: bool = True
    scored_at_least: int = 1
    has_choices: bool = False
    scored_tokens: int = 0
    learned_tokens: int | None = None
    no_answer: str | None = None

    def metric_names(self, task: Task) -> tuple[str, ...]:
        """The metrics of a task, the main one first."""
        return tuple(dict.fromkeys((task.metric, *task.also, *self.metrics)))

    def validation_metrics(self, task: Task) -> tuple[str, ...]:
        """The metrics that the scores on validation data have too, by which a study can choose."""
        return tuple(name for name in self.metric_names(task) if name not in self.test_only)


def _choice_fields(task: Task) -> dict[str, Any]:
    return {**_length(task), "prompt": task.prompt_forms[0], "scorer": "choices", "loss_on": "all"}


def _check_choices(section: Any, task: Task) -> None:
    if section.prompt not in task.prompt_forms:
        allowed = ", ".join(map(repr, task.prompt_forms))
        raise UserError(f"prompt: {section.prompt!r} is not a form of the prompts of {task.name} (allowed: {allowed})")
    if section.scorer == "generated" and section.prompt == "cloze":
        raise UserError("scorer: 'generated' needs prompt: instruction, whose answers can be found in a text")


_CLASSIFIER: dict[str, Any] = {
    "task_type": "SEQ_CLS",
    "auto": "AutoModelForSequenceClassification",
    "architectures": ("ForSequenceClassification",),
    "pipeline": "text-classification",
}
_LANGUAGE_MODEL: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "auto": "AutoModelForCausalLM",
    "pipeline": "text-generation",
}
WRITTEN = ("accuracy_generated", "unanswered")
"""Metrics of what a model writes; on test data alone, where they are asked for."""
MULTI_LABEL = Facts(
    "multi-label",
    metrics=("micro_f1", "macro_f1", "nll"),
    problem_type="multi_label_classification",
    **_CLASSIFIER,
)
REGRESSION = Facts(
    "regression",
    metrics=("pearson", "mse"),
    problem_type="regression",
    fields=("max_length", "teacher"),
    scored_at_least=2,  # a correlation
    **_CLASSIFIER,
)
CLASSIFICATION = Facts(
    "classification",
    metrics=("accuracy", "nll"),
    problem_type="single_label_classification",
    fields=("max_length", "teacher"),
    **_CLASSIFIER,
)
MULTIPLE_CHOICE = Facts(
    "multiple-choice",
    metrics=("accuracy", "accuracy_norm", "nll", "nll_norm", *WRITTEN),
    architectures=("ForCausalLM", "LMHeadModel"),
    fields=("max_length", "prompt", "scorer", "loss_on"),
    defaults=_choice_fields,
    check=_check_choices,
    test_only=WRITTEN,
    scores_batches=False,
    has_choices=True,
    scored_tokens=18,
    learned_tokens=8,
    **_LANGUAGE_MODEL,
)
CHAT = Facts(
    "chat",
    metrics=("nll", "perplexity", "token_accuracy"),
    scores_batches=False,
    fields=("max_length", "loss_on", "chat_template", "packing"),
    **_LANGUAGE_MODEL,
)
DISTILLATION = Facts(
    "distillation",
    task_type="FEATURE_EXTRACTION",
    auto="AutoModel",
    pipeline="feature-extraction",
    metrics=("captured",),
    scores_batches=False,  # of the hidden states themselves, merge_gap has the difference
    fields=(),  # a recipe names the task that it is made of
    no_answer="has learned hidden states: it has nothing to say about a text",
)
IMAGE_CLASSIFICATION = Facts(
    "image-classification",
    task_type="IMAGE_CLS",
    auto="AutoModelForImageClassification",
    architectures=("ForImageClassification",),
    pipeline="image-classification",
    metrics=("accuracy", "nll"),
    problem_type="single_label_classification",
    inputs="image",
    fields=("augment",),
    defaults=lambda task: {"augment": task.augment},
)
FACTS: Mapping[str, Facts] = {
    one.name: one
    for one in (MULTI_LABEL, REGRESSION, CLASSIFICATION, MULTIPLE_CHOICE, CHAT, DISTILLATION, IMAGE_CLASSIFICATION)
}
"""The kinds by name; of those whose models look alike, the one that takes only some of them comes first."""


def facts_of(task: Task) -> Facts:
    """The facts of a task's kind."""
    return FACTS[task.kind]


def taught(task: Task) -> Task:
    """A task's texts, with a teacher's hidden states to learn."""
    return replace(task, kind=DISTILLATION.name, labels=(), metric="captured", also=())


@dataclass(frozen=True)
class TrainedWith:
    """What a model was trained with, as far as it is asked in the same way; None where that is not known.

    Args:
        max_length: tokens; longer texts were cut.
        prompt: the form of questions with options.
        task: its name.
    """

    max_length: int | None = None
    prompt: str | None = None
    task: str | None = None
