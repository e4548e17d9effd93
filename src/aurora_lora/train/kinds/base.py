"""What a kind of task needs.

These files load neither PyTorch nor Transformers before a method asks for them: lists of tasks need only the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor
    from transformers import TrainerCallback

    from ...data import Task
    from ...methods.base import TaskType
    from ..data import Data
    from ..model_inputs import Processor
    from ..recipe import Recipe, TaskSection
    from ..sections import ModelSection
    from ..trainer import RecipeTrainer

Loss = Callable[..., "Tensor"]
"""The loss, from a model's outputs, the labels, and how many items the whole step has, as `losses.mean_loss`."""


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


class Kind:
    """A kind of task.

    Attributes:
        name: what `Task.kind` says.
        task_type: PEFT's name for the kind of model; image classifiers have none there.
        auto: the class of Transformers that loads the model.
        architectures: how the names of the models' own classes end.
        load_options: further arguments of its `from_pretrained`.
        pipeline: the tag of a model card.
        inputs: what an example is, `"text"` or `"image"`.
        metrics: those that every task of this kind has; `Task.also` adds to them.
        fields: those of a recipe's task that only some kinds have.
        scores_batches: whether `compute_metrics` takes the outputs on batches as they are trained on.
        scored_at_least: examples that its metrics need.
        has_choices: whether an example is a question with choices, which is scored whole, for plans.
        scored_tokens: tokens of an example that come on top of its text when it is scored, for plans.
        learned_tokens: tokens of a text that have a loss where not all do, for plans; None where all may have one.
        no_answer: why `predict` has nothing to say.
    """

    name: ClassVar[str]
    task_type: ClassVar[TaskType]
    auto: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[Mapping[str, Any]] = {}
    pipeline: ClassVar[str]
    inputs: ClassVar[str] = "text"
    metrics: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]] = ("max_length",)
    scores_batches: ClassVar[bool] = True
    scored_at_least: ClassVar[int] = 1
    has_choices: ClassVar[bool] = False
    scored_tokens: ClassVar[int] = 0
    learned_tokens: ClassVar[int | None] = None
    no_answer: ClassVar[str | None] = None

    # ---------------------------------------------------------------- metrics

    def metric_names(self, task: Task) -> tuple[str, ...]:
        """The keys that `compute_metrics` may have, the main one first."""
        return tuple(dict.fromkeys((task.metric, *task.also, *self.metrics)))

    def validation_metrics(self, task: Task) -> tuple[str, ...]:
        """The metrics that the scores on validation data have too, by which a study can choose."""
        return self.metric_names(task)

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of all examples of a split, from what the trainer's prediction steps gave."""
        raise NotImplementedError

    def gap_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch for `merge_gap`, without labels that it should not score; see `scores_batches`."""
        return batch

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        """How many answers there are to guess among for each example of a split; nothing where one does not guess."""
        return ()

    def guessed(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of what takes no model: uniform guessing, where one can guess."""
        from ...data.metrics import chance_levels

        return chance_levels(self.answers_of(data, split))

    def most_frequent(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of always answering with the class that most training examples have; nothing where
        there are no classes, or none is much more frequent than others."""
        return {}

    def reported(self, section: TaskSection, task: Task) -> str:
        """The metric that a result is known by."""
        return task.metric

    # ---------------------------------------------------------------- recipe

    def defaults(self, task: Task) -> dict[str, Any]:
        """The fields of a recipe's task that are filled in where it does not give them."""
        return {"max_length": task.max_length}

    def check(self, section: TaskSection, task: Task) -> None:
        """Raise a UserError, which begins with the field, where fields do not fit each other or the task."""

    # ---------------------------------------------------------------- model

    def processor(self, model: ModelSection | str) -> Processor:
        """What makes the inputs of a model: its tokenizer, where nothing else is said.

        Raises:
            UserError: it cannot be loaded.
        """
        from ..models import load_tokenizer

        return load_tokenizer(model)

    def set_head(self, config: Any, labels: Sequence[str]) -> None:
        """Write the head that the task needs into a model's configuration, where it needs a new one."""

    def made(self, config: Any) -> bool:
        """Whether a model's configuration is that of one made for this kind."""
        return any(name.endswith(self.architectures) for name in config.architectures or ())

    # ---------------------------------------------------------------- data and training

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        """The examples and how they become batches, without the network.

        Args:
            recipe: of the run.
            task: of the recipe.
            processor: of the model.
            splits: of the task, by name: `datasets.Dataset`; all of them, or a test set alone, to be scored.

        Raises:
            UserError: the data do not fit the recipe.
        """
        raise NotImplementedError

    def with_targets(self, data: Data, recipe: Recipe) -> Data:
        """The data with what is to be learned, where that is not in the data themselves."""
        return data

    def standardised(self, data: Data, model: Any) -> Data:
        """The data with the scale in which a new model is to learn the labels, where that is not their own.

        Args:
            data: of the recipe.
            model: with the head that is going to be trained.
        """
        return data

    def loss(self) -> Loss:
        """The loss of a batch."""
        from ..losses import mean_loss

        return mean_loss

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        """What trains and scores: takes the arguments of `RecipeTrainer`."""
        from ..trainer import RecipeTrainer

        return RecipeTrainer

    def callbacks(self, data: Data) -> list[TrainerCallback]:
        """Trainer callbacks that the data need."""
        return []

    def before(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> dict[str, float]:
        """The metrics of the base model on the first test set, for the result, where it can do the task untrained."""
        return {}

    def samples(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> list[dict[str, str]]:
        """A few answers before and after the training, for the result: `prompt`, `expected`, `before`, `after`."""
        return []

    # ---------------------------------------------------------------- prediction

    def keep_exact(self, model: Any) -> None:
        """Let a model that computes in a lower precision give in float32 what needs more digits than it has."""

    def finish_merged(self, model: Any, processor: Processor) -> None:
        """Tell a model that will stand alone what the command knows of it beside its weights."""

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        """What a model says about a batch of texts, or of images by their paths or bytes; see `predict`.

        Args:
            model: in eval mode.
            processor: of the model.
            texts: the batch, also of what `asked` gives.
            source: names the model in errors.
            trained: what the model was trained with.
        """
        raise NotImplementedError

    def check_text(self, given: str, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        """Raise a BadRow for what `answers` cannot take of a command, as `asked` does of a row."""
        from ...data.own.columns import text

        text(given, name)

    def named(self, columns: Sequence[str]) -> dict[str, Sequence[str]]:
        """The columns that `predict` is given, by the field of a recipe's task that names such."""
        return {self.inputs: columns}

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """What `answers` takes of a row of a file.

        Args:
            row: of the file.
            columns: the user's, by the field of a recipe's task that names them.

        Raises:
            KeyError: the row lacks a column.
            BadRow: there is no text where one is needed, as in training.
        """
        from ...data.own.columns import text

        texts = tuple(text(row[name], name) for name in columns.get(self.inputs, (self.inputs,)))
        return texts[0] if len(texts) == 1 else texts

    def located(
        self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None
    ) -> Mapping[str, Any]:
        """A row of a table in a folder, for `asked`: with the paths in it resolved.

        Raises:
            BadRow: there is no such file.
        """
        return row

    def check_asked(self, asked: Any, processor: Processor) -> None:
        """Raise a BadRow for what `asked` gives of a row and the model's processor refuses."""

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        """The cells of an answer's line on the terminal."""
        raise NotImplementedError


def as_answers(
    texts: Sequence[Any], said: Iterable[Mapping[str, Any]], cut: Sequence[int | None]
) -> list[dict[str, Any]]:
    """What `Kind.answers` gives.

    Args:
        texts: the batch.
        said: what the model says of each.
        cut: the number of tokens that each was cut to, if it was.
    """
    return [
        {"text": text, **one, **({} if cut_at is None else {"cut_at": cut_at})}
        for text, one, cut_at in zip(texts, said, cut, strict=True)
    ]
